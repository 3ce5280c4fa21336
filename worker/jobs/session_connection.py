"""The connection that shows Redis that this process lives, a worker or a deliverer."""

from __future__ import annotations

import threading
import time
from functools import partial

import structlog
from redis import ConnectionPool
from redis.backoff import NoBackoff
from redis.connection import AbstractConnection, parse_url
from redis.exceptions import RedisError, TimeoutError
from redis.retry import Retry

from batchmill.producer.broker_url import redis_url
from batchmill.producer.protocol import keys
from batchmill.producer.store.primary import following_primary, sentinel_service, server_url

_log = structlog.stdlib.get_logger("batchmill.session_connection")
#: Longest wait for a connection and for its first reply. A worker that was cut off must be back
#: within its session's timeout.
_CONNECT_TIMEOUT_S = 2.0
#: Waits between two attempts to connect: doubled from the first to the last.
_FIRST_WAIT_S = 0.1
_LAST_WAIT_S = 1.0
#: Seconds between two PINGs, and without a reply to them after which the connection is half-open.
_PING_INTERVAL_S = 2.0
_SILENCE_S = 6.0
#: Longest time until a request to close or reconnect is seen.
_POLL_S = 0.2


class SessionConnection:
    """Subscribes to the session's channel for as long as the process lives, in a thread.

    Redis counts the subscribers of a channel. The kernel closes the connection of a process that
    ends, however it ends, and keeps that of a process that is stopped or busy: so the count tells
    other workers which of the two a missing heartbeat means. Unlike a list of clients, any user of
    Redis with `+@pubsub` may ask for the count, and so may a script.
    """

    def __init__(self, broker_url: str, session: str) -> None:
        """Set up the connection; nothing is sent before `start`.

        Args:
            broker_url: of the program.
            session: this run of the program.
        """
        self._channel = keys.session_channel(session)
        url = redis_url(broker_url)
        options = parse_url(server_url(url)) | {
            "socket_timeout": _CONNECT_TIMEOUT_S,
            "socket_connect_timeout": _CONNECT_TIMEOUT_S,
            "retry": Retry(NoBackoff(), 0),
            # With RESP 3 the confirmation would be a push message, which has a handler of its own.
            # The pool must know it too: over TCP it adds options that need RESP 3.
            "protocol": 2,
        }
        pool = ConnectionPool(**options)
        kind = following_primary(pool.connection_class, sentinel_service(url))
        self._new_connection = partial(kind, **pool.connection_kwargs)
        self._connected_at: float | None = None
        self._must_reconnect = False
        self._closing = threading.Event()
        self._is_reachable = True
        self._thread = threading.Thread(target=self._run, name="session", daemon=True)

    @property
    def connected_s(self) -> float:
        """Seconds since the connection was made; 0 while there is none."""
        connected_at = self._connected_at
        return 0.0 if connected_at is None else time.monotonic() - connected_at

    def start(self) -> None:
        """Start the thread, which connects and stays connected."""
        self._thread.start()

    def reconnect(self) -> None:
        """Make a new connection: Redis does not see this one, as after a failover."""
        self._must_reconnect = self.connected_s > _CONNECT_TIMEOUT_S

    def close(self, timeout_s: float) -> None:
        """Close the connection and end the thread."""
        self._closing.set()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        wait_s = _FIRST_WAIT_S
        while not self._closing.is_set():
            connection: AbstractConnection = self._new_connection()
            try:
                connection.connect()
                self._hold(connection)
            except (RedisError, OSError) as error:
                self._log_outage(error)
            finally:
                was_connected = self._connected_at is not None
                self._connected_at = None
                connection.disconnect()
            wait_s = _FIRST_WAIT_S if was_connected else min(2 * wait_s, _LAST_WAIT_S)
            self._closing.wait(wait_s)

    def _hold(self, connection: AbstractConnection) -> None:
        """Subscribe, and return when the connection is to be closed.

        Raises:
            RedisError: the connection was closed, or Redis did not reply in time.
            OSError: the same.
        """
        connection.send_command("SUBSCRIBE", self._channel, check_health=False)
        connection.read_response()
        self._must_reconnect = False
        self._connected_at = asked_at = heard_at = time.monotonic()
        self._is_reachable = True
        while not self._closing.is_set() and not self._must_reconnect:
            if connection.can_read(timeout=_POLL_S):
                connection.read_response()
                heard_at = time.monotonic()
            now = time.monotonic()
            if now - heard_at > _SILENCE_S:
                raise TimeoutError("no reply to a PING")
            if now - asked_at > _PING_INTERVAL_S:
                connection.send_command("PING", check_health=False)
                asked_at = now

    def _log_outage(self, error: Exception) -> None:
        """Log an outage once, not at every attempt."""
        if self._is_reachable:
            _log.warning(
                "session_disconnected", error=type(error).__name__, reason=str(error)[:200]
            )
        self._is_reachable = False
