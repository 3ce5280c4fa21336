"""A primary and an asynchronous replica, with real servers."""

from __future__ import annotations

import signal
import time
from typing import Any

import redis

from ..conftest import RedisServer
from .processes import free_port


class ReplicatedServer:
    """A primary with one replica, which may be frozen or cut off."""

    def __init__(self) -> None:
        self.primary, self.replica = RedisServer(), RedisServer()
        port = free_port()
        # A replica reaches its primary over TCP only.
        self.primary.start(
            *("--port", str(port), "--bind", "127.0.0.1", "--repl-diskless-sync-delay", "0")
        )
        self.replica.start("--replicaof", "127.0.0.1", str(port), "--repl-diskless-load", "swapdb")
        self.wait_in_step()

    def close(self) -> None:
        """End both servers."""
        self.thaw()
        self.replica.close()
        self.primary.close()

    def wait_in_step(self) -> None:
        """Wait until the replica has all that the primary has."""
        client: Any = redis.Redis.from_url(self.primary.url)
        deadline = time.monotonic() + 60
        client.publish("any", "")
        while client.execute_command("WAIT", 1, 100) < 1:
            assert time.monotonic() < deadline, "the replica does not follow"
            client.publish("any", "")
        client.close()

    def freeze(self) -> None:
        """Stop the replica: it confirms nothing until `thaw`, and then gets what it has missed."""
        assert self.replica.process is not None
        self.replica.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let the replica continue."""
        if self.replica.process is not None and self.replica.process.poll() is None:
            self.replica.process.send_signal(signal.SIGCONT)

    def cut(self) -> None:
        """Cut the replica off: what the primary writes from now on is lost in a failover."""
        client: Any = redis.Redis.from_url(self.replica.url)
        client.execute_command("REPLICAOF", "NO", "ONE")
        client.close()
