"""A primary, an asynchronous replica and three Sentinels on loopback."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from batchmill.worker.local.broker_binary import find_server_binary
from batchmill.worker.local.child_process import start_child_process
from batchmill.worker.service_errors import BenchFailed

_HOST = "127.0.0.1"
_SERVICE = "mill"
_NUM_SENTINELS, _QUORUM = 3, 2
#: Milliseconds without a reply after which a Sentinel holds the primary for gone.
_DOWN_AFTER_MS = 1000
_TIMEOUT_S = 120.0
_POLL_S = 0.05


class WatchedService:
    """Owns the processes. Use it in the main thread, which their lives are tied to."""

    def __init__(self, folder: Path, *, password: str = "", program: str | None = None) -> None:
        """Start everything, and wait until the Sentinels know each other and the replica.

        Args:
            folder: for data and logs.
            password: that Redis asks for; empty asks for none.
            program: the server; None takes that of the embedded broker.

        Raises:
            BenchFailed: it took too long.
            BrokerNotInstalled: there is no server program.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._password = password
        self._program = program or str(find_server_binary())
        self._sentinel_ports = [_free_port() for _ in range(_NUM_SENTINELS)]
        self._servers: dict[int, subprocess.Popen[bytes] | None] = {
            _free_port(): None,
            _free_port(): None,
        }
        self._sentinels: list[subprocess.Popen[bytes]] = []
        try:
            first, second = self._servers
            self._start_server(first)
            self._start_server(second, "--replicaof", _HOST, str(first))
            self._wait_for(lambda: self._is_followed(first), "the replica to follow")
            for port in self._sentinel_ports:
                self._start_sentinel(port, first)
            self._wait_for(self._are_complete, "the Sentinels to know each other")
        except BaseException:
            self.close()
            raise

    @property
    def url(self) -> str:
        """Broker URL of the service."""
        hosts = ",".join(f"{_HOST}:{port}" for port in self._sentinel_ports)
        login = f":{self._password}@" if self._password else ""
        return f"sentinel://{login}{hosts}/{_SERVICE}/0"

    def primary_port(self) -> int:
        """Return the port of the primary, by the first Sentinel that replies.

        Raises:
            redis.RedisError: none does.
        """
        error: redis.RedisError | None = None
        for port in self._sentinel_ports:
            try:
                with self._connect(port) as sentinel:
                    return int(sentinel.sentinel_get_master_addr_by_name(_SERVICE)[1])
            except redis.RedisError as failure:
                error = failure
        assert error is not None
        raise error

    def cut_replica(self) -> None:
        """Stop the replication: what the primary writes from now on is lost if it dies soon.

        After eight seconds the Sentinels make the server a replica again.
        """
        with self._connect(self._other_port(), self._password) as client:
            client.execute_command("REPLICAOF", "NO", "ONE")

    def is_cut(self) -> bool:
        """Return whether the replication is still stopped."""
        with self._connect(self._other_port(), self._password) as client:
            return bool(client.info("replication")["role"] == "master")

    def kill_primary(self) -> float:
        """Kill the primary, and return the seconds until the Sentinels named another one."""
        old = self.primary_port()
        process = self._servers[old]
        assert process is not None
        process.kill()
        process.wait()
        began_s = time.monotonic()
        self._wait_for(lambda: self.primary_port() != old and self._is_primary(), "the failover")
        return time.monotonic() - began_s

    def restart_killed(self) -> None:
        """Start the server that was killed as a replica, and wait until it follows."""
        primary, killed = self.primary_port(), self._other_port()
        self._start_server(killed, "--replicaof", _HOST, str(primary))
        self._wait_for(lambda: self._is_followed(primary), "the old primary to follow")

    def wait_in_step(self) -> None:
        """Wait until the replica has all that the primary has."""
        self._wait_for(lambda: self._is_followed(self.primary_port()), "the replica to follow")

    def kill_sentinel(self) -> None:
        """Kill the Sentinel that the URL names first."""
        self._sentinels[0].kill()
        self._sentinels[0].wait()

    def close(self) -> None:
        """End all processes."""
        for process in (*self._sentinels, *self._servers.values()):
            if process is not None:
                process.kill()
                process.wait()

    def _start_server(self, port: int, *options: str) -> None:
        data = self._folder / str(port)
        data.mkdir(parents=True, exist_ok=True)
        command = [
            self._program,
            *("--port", str(port), "--bind", _HOST, "--dir", str(data), "--save", ""),
            *("--appendonly", "no", "--repl-diskless-sync-delay", "0"),
        ]
        if self._password:
            command += ["--requirepass", self._password, "--masterauth", self._password]
        self._servers[port] = self._start([*command, *options], f"{port}.log")

    def _start_sentinel(self, port: int, primary: int) -> None:
        configuration = self._folder / f"sentinel-{port}.conf"
        configuration.write_text("\n".join(self._sentinel_lines(port, primary)) + "\n")
        command = [self._program, str(configuration), "--sentinel"]
        self._sentinels.append(self._start(command, f"sentinel-{port}.log"))

    def _sentinel_lines(self, port: int, primary: int) -> list[str]:
        lines = [
            f"port {port}",
            f"bind {_HOST}",
            f'dir "{self._folder}"',
            f"sentinel monitor {_SERVICE} {_HOST} {primary} {_QUORUM}",
            f"sentinel down-after-milliseconds {_SERVICE} {_DOWN_AFTER_MS}",
            f"sentinel failover-timeout {_SERVICE} 10000",
        ]
        if self._password:
            lines.append(f"sentinel auth-pass {_SERVICE} {self._password}")
        return lines

    def _start(self, command: list[str], log: str) -> subprocess.Popen[bytes]:
        return start_child_process(
            command, log_path=self._folder / log, death_signal=signal.SIGKILL
        )

    def _other_port(self) -> int:
        (port,) = self._servers.keys() - {self.primary_port()}
        return port

    def _is_primary(self) -> bool:
        with self._connect(self.primary_port(), self._password) as client:
            return bool(client.info("replication")["role"] == "master")

    def _is_followed(self, port: int) -> bool:
        """Return whether the replica has what the primary has written, with a mark of now."""
        with self._connect(port, self._password) as client:
            client.publish("any", "")
            return bool(client.execute_command("WAIT", 1, 200) >= 1)

    def _are_complete(self) -> bool:
        for port in self._sentinel_ports:
            with self._connect(port) as sentinel:
                state = sentinel.sentinel_master(_SERVICE)
            if (state["num-slaves"], state["num-other-sentinels"]) != (1, _NUM_SENTINELS - 1):
                return False
        return True

    @contextlib.contextmanager
    def _connect(self, port: int, password: str = "") -> Iterator[Any]:
        client: Any = redis.Redis(
            host=_HOST,
            port=port,
            password=password or None,
            socket_timeout=2,
            retry=Retry(NoBackoff(), 0),
            decode_responses=True,
        )
        try:
            yield client
        finally:
            client.close()

    @staticmethod
    def _wait_for(condition: Callable[[], bool], what: str) -> None:
        deadline_s = time.monotonic() + _TIMEOUT_S
        while True:
            with contextlib.suppress(redis.RedisError):
                if condition():
                    return
            if time.monotonic() > deadline_s:
                raise BenchFailed(f"waited {_TIMEOUT_S:g} s for {what}")
            time.sleep(_POLL_S)


def _free_port() -> int:
    with socket.create_server((_HOST, 0)) as probe:
        return int(probe.getsockname()[1])
