"""The embedded broker: a real Redis-protocol server as a child process, for one machine.

It is not a stand-in: it runs the same Lua scripts with the same persistence. Production uses a
separate Redis or Valkey through BATCHMILL_BROKER_URL.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import redis

from batchmill.worker.service_errors import BrokerAlreadyRunning, BrokerFailed

from .broker_binary import find_server_binary
from .broker_config import BrokerConfig
from .child_process import start_child_process, stop_child_process
from .state_dir import make_private_directory

_POLL_INTERVAL_S = 0.02
#: Seconds that a server may take to end before it counts as running.
_EXIT_GRACE_S = 1.0
_LOG_TAIL_LINES = 8


class EmbeddedBroker:
    """Owns one server process and the lock of its directory.

    Invariant: at most one live server per directory. The lock is a file lock on a descriptor that
    the server inherits, so it is held exactly as long as this object or the server lives. Nothing
    has to be cleaned up after a crash: a socket found while the lock is free belongs to a dead
    broker.

    The kernel ends the server when this process dies. `start` must be called in the main thread.
    """

    def __init__(self, config: BrokerConfig) -> None:
        self._config = config
        self._process: subprocess.Popen[bytes] | None = None
        self._lock_fd: int | None = None

    @property
    def url(self) -> str:
        """Broker URL of this server."""
        return self._config.url

    @property
    def pid(self) -> int | None:
        """Process id of the server, or None while it does not run."""
        if self._process is None or self._process.poll() is not None:
            return None
        return self._process.pid

    @property
    def log_path(self) -> Path:
        """The server's log file."""
        return self._config.directory / "broker.log"

    def start(self, *, timeout_s: float = 60.0) -> None:
        """Start the server and return when it replies.

        Args:
            timeout_s: limit in seconds, loading the data included.

        Raises:
            BrokerNotInstalled: no server program on this machine.
            BrokerAlreadyRunning: a live broker owns the directory or listens at the address.
            BrokerFailed: the server ended or did not reply in time; the message quotes its log.
            BrokerError: the socket path is too long.
        """
        binary = find_server_binary()
        deadline = time.monotonic() + timeout_s
        self._prepare_directories()
        try:
            self._lock(deadline)
            self._refuse_foreign_server()
            self._process = self._spawn(binary)
            self._wait_until_ready(deadline)
        except BaseException:
            self.stop()
            raise

    def stop(self, *, timeout_s: float = 10.0) -> None:
        """End the server and free the directory. The data is on disk when this returns."""
        if self._process is not None:
            stop_child_process(self._process, timeout_s=timeout_s)
            self._process = None
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    def __enter__(self) -> EmbeddedBroker:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _prepare_directories(self) -> None:
        config = self._config
        config.check_socket_path()
        make_private_directory(config.directory)
        make_private_directory(config.socket.parent, "BATCHMILL_RUNTIME_DIR")
        make_private_directory(config.directory / "data")

    def _lock(self, deadline: float) -> None:
        """Lock the directory; wait for a broker that is just ending.

        A server that is about to end still replies for up to 0.1 s, so a reply alone proves little.
        """
        counts_as_running_at = time.monotonic() + _EXIT_GRACE_S
        path = self._config.directory / "broker.lock"
        self._lock_fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        while True:
            try:
                fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                now = time.monotonic()
                pid = running_server_pid(self.url) if now > counts_as_running_at else None
                if pid is not None or now > deadline:
                    raise _already_running_error(self.url, pid) from None
            time.sleep(_POLL_INTERVAL_S)

    def _refuse_foreign_server(self) -> None:
        """Remove a dead broker's socket; refuse an address where another server listens."""
        if self._config.port is not None:
            address: str | tuple[str, int] = ("127.0.0.1", self._config.port)
            family = socket.AF_INET
        else:
            address, family = str(self._config.socket), socket.AF_UNIX
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(address)
            except (ConnectionRefusedError, FileNotFoundError):
                if self._config.port is None:
                    self._config.socket.unlink(missing_ok=True)
                return
        raise _already_running_error(self.url, running_server_pid(self.url))

    def _spawn(self, binary: Path) -> subprocess.Popen[bytes]:
        configuration = self._config.directory / "broker.conf"
        configuration.write_text(self._config.server_configuration())
        assert self._lock_fd is not None
        return start_child_process(
            [str(binary), str(configuration)],
            log_path=self.log_path,
            death_signal=signal.SIGTERM,  # the server ends in order, with an fsync of its data
            pass_fds=(self._lock_fd,),
        )

    def _wait_until_ready(self, deadline: float) -> None:
        assert self._process is not None
        with redis.Redis.from_url(self.url, socket_timeout=5.0) as connection:
            while True:
                if self._process.poll() is not None:
                    raise BrokerFailed(
                        f"the embedded broker ended with exit code {self._process.returncode}; "
                        f"end of {self.log_path}:\n{self._log_tail()}"
                    )
                try:
                    connection.ping()
                    return
                except (
                    redis.ConnectionError,
                    redis.TimeoutError,
                ):  # not listening, or still loading
                    if time.monotonic() > deadline:
                        raise BrokerFailed(
                            "the embedded broker did not reply in time; "
                            f"end of {self.log_path}:\n{self._log_tail()}"
                        ) from None
                time.sleep(_POLL_INTERVAL_S)

    def _log_tail(self) -> str:
        lines = self.log_path.read_text(errors="replace").splitlines()
        return "\n".join(lines[-_LOG_TAIL_LINES:])


def running_server_pid(url: str) -> int | None:
    """Return the process id of the server at a URL; None if no server replies."""
    with redis.Redis.from_url(url, socket_timeout=2.0, socket_connect_timeout=2.0) as connection:
        try:
            return int(connection.info("server")["process_id"])
        except (redis.RedisError, OSError):
            return None


def _already_running_error(url: str, pid: int | None) -> BrokerAlreadyRunning:
    who = f"pid {pid}" if pid is not None else "its pid is unknown"
    return BrokerAlreadyRunning(
        f"a broker is already running at {url} ({who}); use it with --broker-url {url}, or stop it",
        pid,
    )
