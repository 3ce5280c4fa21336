"""Whom a client believes if Sentinels disagree, are away or know nothing."""

from __future__ import annotations

import asyncio
import socketserver
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from batchmill.producer.sentinel_url import read_sentinel_url
from batchmill.producer.store.primary import PrimaryUnknown, async_find_primary, find_primary
from batchmill.producer.store.sentinel_votes import Answer, SentinelVotes

OLD, NEW = ("10.0.0.1", 6379), ("10.0.0.2", 6379)
SERVICE = read_sentinel_url("sentinel://s1,s2,s3/mill")


def votes_of(*primaries: tuple[str, int] | None) -> SentinelVotes:
    votes = SentinelVotes(SERVICE)
    for number, primary in enumerate(primaries, 1):
        error = None if primary else RedisConnectionError("away")
        votes.note(Answer(f"s{number}", 26379, primary, error))
    return votes


def test_a_majority_ends_the_vote_and_wins() -> None:
    assert votes_of(OLD).is_open
    assert votes_of(OLD, NEW).is_open
    assert not votes_of(NEW, NEW).is_open
    assert votes_of(OLD, NEW, NEW).winner() == NEW
    assert votes_of(OLD, OLD, NEW).winner() == OLD


def test_without_a_majority_the_most_votes_win_and_then_the_order_of_the_url() -> None:
    assert votes_of(None, NEW).is_open
    assert not votes_of(None, NEW, None).is_open
    assert votes_of(None, NEW, None).winner() == NEW
    assert votes_of(None, OLD, NEW).winner() == OLD
    votes = SentinelVotes(SERVICE)
    votes.note(Answer("s3", 26379, NEW))
    votes.note(Answer("s1", 26379, OLD))
    assert votes.winner() == OLD


def test_the_problem_names_what_each_says() -> None:
    votes = votes_of(None, None)
    assert votes.winner() is None
    assert "'mill': s1:26379: ConnectionError: away; s2:26379" in votes.problem()


@contextmanager
def sentinel(primary: tuple[str, int] | None) -> Iterator[str]:
    """A server that says one thing; without a primary it accepts connections and never replies."""
    ended = threading.Event()

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while primary is not None and (line := self.rfile.readline()):
                words = [line]
                for _ in range(int(line[1:])):
                    self.rfile.readline()
                    words.append(self.rfile.readline().strip())
                if words[1].upper() != b"SENTINEL":
                    is_hello = words[1].upper() == b"HELLO"
                    self.wfile.write(b"%1\r\n$5\r\nproto\r\n:3\r\n" if is_hello else b"+OK\r\n")
                    continue
                host = primary[0].encode()
                self.wfile.write(b"*2\r\n$%d\r\n%s\r\n$4\r\n%d\r\n" % (len(host), host, primary[1]))
            ended.wait(60)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        block_on_close = False

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"127.0.0.1:{server.server_address[1]}"
        ended.set()
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("says", "believed"),
    [
        ([OLD, NEW, NEW], NEW),
        ([None, NEW, NEW], NEW),
        ([None, None, NEW], NEW),
        ([None, None], None),
    ],
)
def test_clients_ask_all_sentinels(
    says: list[tuple[str, int] | None], believed: tuple[str, int] | None
) -> None:
    with ExitStack() as stack:
        places = ",".join(stack.enter_context(sentinel(primary)) for primary in says)
        service = read_sentinel_url(f"sentinel://{places}/mill")
        if believed is None:
            with pytest.raises(PrimaryUnknown, match="no Sentinel names a primary of 'mill'"):
                find_primary(service)
            with pytest.raises(PrimaryUnknown, match="no Sentinel names a primary of 'mill'"):
                asyncio.run(async_find_primary(service))
            return
        assert find_primary(service) == believed
        assert asyncio.run(async_find_primary(service)) == believed
