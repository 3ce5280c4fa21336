"""Connections of a worker to the broker, which come back within seconds after an outage."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Final

from kombu import Connection
from kombu.connection import ConnectionPool, PooledConnection
from redis.exceptions import ConnectionError as RedisConnectionError

#: Wait before the first attempt to connect again, how much longer each wait is than the one
#: before, and the longest one. kombu's own waits grow to half a minute, and Celery has no setting.
_FIRST_WAIT_S: Final = 0.2
_LONGER_BY_S: Final = 0.4
MAX_WAIT_S: Final = 2.0

#: Seconds between two looks for a reply that is overdue. On a half-open connection kombu drops the
#: request for a message after two of them.
LOOK_INTERVAL_S: Final = 2


class BrokerConnection(Connection):
    """kombu's connection with a shorter back-off."""

    def _ensure_connection(self, *args: Any, **kwargs: Any) -> Any:
        waits = {
            "interval_start": _FIRST_WAIT_S,
            "interval_step": _LONGER_BY_S,
            "interval_max": MAX_WAIT_S,
        }
        ensure: Any = super()._ensure_connection
        return ensure(*args, **(waits | kwargs))

    def Pool(self, limit: int | None = None, **options: Any) -> ConnectionPool:
        """Return a pool of connections for publishing.

        Args:
            limit: most connections.
            options: of kombu's pool.
        """
        kind: Any = _Pool
        pool: ConnectionPool = kind(self, limit, **options)
        return pool


class _PublishingConnection(PooledConnection):
    """kombu's pooled connection, which publishes on no closed channel."""

    def ensure(self, obj: Any, fun: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Return a function that repeats `fun` on a new channel if the connection breaks.

        kombu closes a channel after a cut, and may hand it out again. It then fails before anything
        is sent, by an `AttributeError`, which neither kombu nor Celery takes for a cut: a task that
        follows another would not be sent, and the other one count as failed.

        Args:
            obj: what owns the channel, such as a producer.
            fun: publishes through it.
            args: further ones of kombu's method.
            options: as well.
        """

        @wraps(fun)
        def attempt(*given: Any, **named: Any) -> Any:
            try:
                return fun(*given, **named)
            except AttributeError as error:
                channel = getattr(obj, "channel", None)
                if channel is None or channel.connection is not None:
                    raise
                raise RedisConnectionError("kombu's channel was closed after a cut") from error

        ensure: Any = super().ensure
        return ensure(obj, attempt, *args, **options)


class _Pool(ConnectionPool):
    """kombu's pool, with connections of ours."""

    def new(self) -> Any:
        """Return a connection that is not open yet."""
        connection: Any = self.connection
        kind: Any = _PublishingConnection
        return kind(self, **dict(connection._info(resolve=False)))
