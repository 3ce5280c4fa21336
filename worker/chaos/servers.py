"""The Redis servers of a run: a primary and a replica, which can be killed and change places."""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import redis

from batchmill.worker.local.broker_config import BrokerConfig
from batchmill.worker.local.embedded_broker import EmbeddedBroker
from batchmill.worker.service_errors import BenchFailed

_HOST = "127.0.0.1"
_POLL_S = 0.01
#: Seconds that a replica may take to catch up or to take over.
_FAILOVER_TIMEOUT_S = 30.0
#: Seconds that a replica may take to follow again before a failover is left out.
_FOLLOW_TIMEOUT_S = 3.0


class ServerPair:
    """Owns both servers. Use it in the main thread, which their lives are tied to."""

    def __init__(self, folder: Path, *, has_replica: bool) -> None:
        """Choose ports; nothing runs before `start`.

        Args:
            folder: for data and logs.
            has_replica: whether there will be failovers.
        """
        self._has_replica = has_replica
        names = ("a", "b")
        ports = [_free_port() for _ in names]
        self._primary, self._replica = (
            EmbeddedBroker(BrokerConfig(folder / name, port=port))
            for name, port in zip(names, ports, strict=True)
        )
        self._ports = dict(zip((self._primary, self._replica), ports, strict=True))

    @property
    def port(self) -> int:
        """Port of the primary."""
        return self._ports[self._primary]

    @property
    def url(self) -> str:
        """URL of the primary."""
        return self._primary.url

    @property
    def pid(self) -> int | None:
        """Process id of the primary; None while it is down."""
        return self._primary.pid

    def start(self) -> None:
        """Start both and wait until the replica follows."""
        self._primary.start()
        if not self._has_replica:
            return
        self._replica.start()
        self._follow()
        self._wait_for(self._has_caught_up, "the replica to follow")

    def stop(self) -> None:
        """End both."""
        self._replica.stop()
        self._primary.stop()

    def signal_primary(self, number: int) -> None:
        """Send a signal to the primary, if it runs."""
        if self.pid is not None:
            os.kill(self.pid, number)

    def wait_until_written(self) -> None:
        """Wait until the primary has written all that it has taken to its append-only file.

        With `appendfsync everysec` it replies before that if the disk is slow, and a kill of its
        process loses up to two seconds. Nothing may write meanwhile.
        """
        self._wait_for(self._has_written, "the append-only file")

    def restart_primary(self) -> None:
        """Start the primary again, with its data, after it was killed."""
        self._primary.stop()
        self._primary.start()

    def has_follower(self) -> bool:
        """Return whether the replica follows; after a fault of the primary this takes a moment."""
        deadline_s = time.monotonic() + _FOLLOW_TIMEOUT_S
        while time.monotonic() < deadline_s:
            try:
                if self._is_following():
                    return True
            except redis.RedisError:
                pass  # it is starting
            time.sleep(_POLL_S)
        return False

    def fail_over(self) -> None:
        """Let the replica take over in order, without losing a write.

        The server waits until the replica has caught up, and takes no write meanwhile.
        """
        with redis.Redis.from_url(self.url) as client:
            client.execute_command("FAILOVER", "TO", _HOST, self._ports[self._replica])
        self._primary, self._replica = self._replica, self._primary
        self._wait_for(self._is_primary, "the failover")

    def kill_and_promote(self) -> None:
        """Kill the primary and promote the replica, which has all writes if no client can write."""
        self._wait_for(self._has_caught_up, "the replica to catch up")
        self.signal_primary(signal.SIGKILL)
        self._primary, self._replica = self._replica, self._primary
        with redis.Redis.from_url(self.url) as client:
            client.execute_command("REPLICAOF", "NO", "ONE")

    def restart_replica(self) -> None:
        """Start the server that was killed as the replica of the other one."""
        self._replica.stop()
        self._replica.start()
        self._follow()

    def _follow(self) -> None:
        with redis.Redis.from_url(self.url) as client:
            # By default it waits five seconds for more replicas.
            client.config_set("repl-diskless-sync-delay", 0)
        with redis.Redis.from_url(self._replica.url) as client:
            client.execute_command("REPLICAOF", _HOST, self.port)

    def _is_following(self) -> bool:
        with redis.Redis.from_url(self.url) as client:
            replica = client.info("replication").get("slave0", {})
        return bool(replica.get("state") == "online")

    def _has_caught_up(self) -> bool:
        with redis.Redis.from_url(self.url) as client:
            state = client.info("replication")
        replica = state.get("slave0", {})
        is_online = replica.get("state") == "online"
        return bool(is_online and replica["offset"] == state["master_repl_offset"])

    def _has_written(self) -> bool:
        with redis.Redis.from_url(self.url) as client:
            return has_written(client.info("persistence"))

    def _is_primary(self) -> bool:
        with redis.Redis.from_url(self.url) as client:
            return bool(client.info("replication")["role"] == "master")

    @staticmethod
    def _wait_for(condition: Callable[[], bool], what: str) -> None:
        deadline_s = time.monotonic() + _FAILOVER_TIMEOUT_S
        while True:
            try:
                if condition():
                    return
            except redis.RedisError:
                pass  # it is starting, or just changing its role
            if time.monotonic() > deadline_s:
                raise BenchFailed(f"waited {_FAILOVER_TIMEOUT_S:g} s for {what}")
            time.sleep(_POLL_S)


def has_written(persistence: Mapping[str, Any]) -> bool:
    """Return whether a server has passed all that it has taken to the operating system."""
    return not persistence["loading"] and persistence.get("aof_buffer_length") == 0


def _free_port() -> int:
    with socket.create_server((_HOST, 0)) as probe:
        return int(probe.getsockname()[1])
