"""Commands that are sent past redis-py: what may be in them, and how long a send waits."""

from __future__ import annotations

from typing import Any

import pytest
from redis.exceptions import DataError

from batchmill.producer.store.call_limits import time_limit
from batchmill.producer.store.commands import run_commands
from batchmill.producer.store.connection import connect


def test_text_bytes_and_numbers_arrive_as_they_are(redis_url: str) -> None:
    client = connect(redis_url)
    words: list[Any] = ["\xe9", b"\xff", 7, 1.5]
    assert run_commands(client, [["ECHO", word] for word in words]) == [
        "\xe9".encode(),
        b"\xff",
        b"7",
        b"1.5",
    ]
    client.close()


@pytest.mark.parametrize("word", [None, True, bytearray(b"x")], ids=["none", "bool", "bytearray"])
def test_other_values_are_refused(redis_url: str, word: Any) -> None:
    client = connect(redis_url)
    with pytest.raises(DataError, match=type(word).__name__):
        run_commands(client, [["ECHO", word]])
    client.close()


class SlowSocket:
    """Each send takes a second of a clock that only it moves."""

    def __init__(self, socket: Any) -> None:
        self._socket = socket
        self.now_s = 0.0
        self.limits_s: list[float] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)

    def sendall(self, data: bytes) -> None:
        self.limits_s.append(self._socket.gettimeout())
        self.now_s += 1.0
        self._socket.sendall(data)


def test_the_pieces_of_a_long_command_share_one_limit(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = connect(redis_url, timeout_s=10.0)
    client.ping()
    connection: Any = client.connection_pool.get_connection()
    slow = SlowSocket(connection._sock)
    monkeypatch.setattr(connection, "_sock", slow)
    monkeypatch.setattr("batchmill.producer.store.call_limits.time.monotonic", lambda: slow.now_s)
    with time_limit(4.0):
        connection.send_packed_command([b"*1\r\n", b"$4\r\n", b"PI", b"NG", b"\r\n"], False)
    monkeypatch.undo()
    assert slow.limits_s == [4.0, 3.0, 2.0, 1.0, 0.001]
    assert connection.read_response() == b"PONG"
    client.connection_pool.release(connection)
    client.close()
