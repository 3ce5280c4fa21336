"""Ways to make a real server refuse calls for a while, by the word of its error."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import redis

from ..conftest import RedisServer

_PASSWORD = "rotated"


@contextmanager
def _read_only(server: RedisServer, admin: Any) -> Iterator[None]:
    admin.execute_command("REPLICAOF", "127.0.0.1", "1")  # nothing listens there
    yield
    admin.execute_command("REPLICAOF", "NO", "ONE")


@contextmanager
def _primary_down(server: RedisServer, admin: Any) -> Iterator[None]:
    admin.config_set("replica-serve-stale-data", "no")
    with _read_only(server, admin):
        yield
    admin.config_set("replica-serve-stale-data", "yes")


@contextmanager
def _too_few_replicas(server: RedisServer, admin: Any) -> Iterator[None]:
    admin.config_set("min-replicas-to-write", 1)
    yield
    admin.config_set("min-replicas-to-write", 0)


@contextmanager
def _cannot_save(server: RedisServer, admin: Any) -> Iterator[None]:
    """Make a snapshot fail, as on a full disk."""
    admin.config_set("save", "3600 1")
    admin.execute_command("CONFIG", "SET", "dir", "/proc/self")
    admin.execute_command("BGSAVE")
    _wait_for(lambda: admin.info("persistence")["rdb_last_bgsave_status"] == "err")
    yield
    admin.config_set("stop-writes-on-bgsave-error", "no")


@contextmanager
def _long_script(server: RedisServer, admin: Any) -> Iterator[None]:
    admin.config_set("busy-reply-threshold", 1)

    def run() -> None:
        with redis.Redis.from_url(server.url) as other, contextlib.suppress(redis.ResponseError):
            other.eval("while true do end", 0)  # ends with SCRIPT KILL

    thread = threading.Thread(target=run)
    thread.start()
    _wait_for(lambda: _is_refused(admin, "BUSY"))
    yield
    admin.script_kill()
    thread.join(timeout=60)


@contextmanager
def _new_password(server: RedisServer, admin: Any) -> Iterator[None]:
    admin.config_set("requirepass", _PASSWORD)
    admin.execute_command("CLIENT", "KILL", "SKIPME", "yes")
    yield
    admin.config_set("requirepass", "")


@contextmanager
def _loading(server: RedisServer, admin: Any) -> Iterator[None]:
    """Restart the server with so much to load that it cannot serve at first."""
    with admin.pipeline() as pipeline:
        for number in range(500):
            pipeline.set(f"load:{number}", os.urandom(1100))  # not compressible
        pipeline.execute()
    admin.bgrewriteaof()  # a snapshot, which is loaded key by key
    _wait_for(lambda: not admin.info("persistence")["aof_rewrite_in_progress"])
    server.kill()
    options = ["--key-load-delay", "10000", "--loading-process-events-interval-bytes", "1024"]
    server.start(*options, until_loaded=False)
    yield
    _wait_for(lambda: not _is_refused(admin, "LOADING"))


Refusal = Callable[[RedisServer, Any], contextlib.AbstractContextManager[None]]

REFUSALS: dict[str, Refusal] = {
    "READONLY": _read_only,
    "MASTERDOWN": _primary_down,
    "NOREPLICAS": _too_few_replicas,
    "MISCONF": _cannot_save,
    "BUSY": _long_script,
    "NOAUTH": _new_password,
    "LOADING": _loading,
}
#: Those that one server can give in turn: not MISCONF, after which its folder for snapshots is
#: wrong; LOADING is the last one, because it restarts the server.
REFUSALS_IN_TURN = [*sorted(REFUSALS.keys() - {"LOADING", "MISCONF"}), "LOADING"]


@contextmanager
def refused(word: str, server: RedisServer) -> Iterator[None]:
    """Make a server refuse calls inside, with errors that begin with a word of `REFUSALS`."""
    with redis.Redis.from_url(server.url) as admin, REFUSALS[word](server, admin):
        yield


def _is_refused(client: Any, word: str) -> bool:
    try:
        client.get("nothing")
    except redis.exceptions.BusyLoadingError:
        return word == "LOADING"
    except redis.ResponseError as error:
        return str(error).startswith(word)
    return False


def _wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
