"""Redis clients with the protocol's timeouts and retries, and what asyncio needs on top.

The differences between the synchronous and the asyncio clients are all here, apart from `await`:
redis-py's pool makes new connections after a fork, and the classes below keep an asyncio client to
one event loop and make a cancelled task end.
"""

from __future__ import annotations

import asyncio
from typing import Any

from redis import ConnectionPool, Redis
from redis.asyncio import Redis as AsyncRedis
from redis.asyncio.connection import ConnectionPool as AsyncConnectionPool
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import (
    AuthenticationError,
    ClusterDownError,
    MasterDownError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
    TryAgainError,
)
from redis.retry import Retry

from batchmill.producer.broker_url import redis_url
from batchmill.producer.errors import WrongEventLoop

#: A server refuses writes because it is a replica, or all calls because its primary is gone.
_REPLICA_ERRORS = (ReadOnlyError, MasterDownError)
# A connection that is cut silently is noticed after socket_timeout. Without it a half-open
# connection would hang forever.
_OPTIONS: dict[str, Any] = {
    "socket_timeout": 10,
    "socket_connect_timeout": 3,
    "health_check_interval": 10,
    "decode_responses": False,
    # A server that has just become a replica: the retry makes a new connection.
    "retry_on_error": list(_REPLICA_ERRORS),
}
_IMPATIENT_OPTIONS: dict[str, Any] = {
    "socket_timeout": 2,
    "socket_connect_timeout": 2,
    "retry_on_error": [],
}
# A call whose reply was lost is repeated, which every script is made for. Five times within about
# two seconds: enough for a dropped connection, while a wrong address soon becomes an error.
# (redis-py's own default keeps trying for half a minute.)
_NUM_RETRIES = 5
_BACKOFF = ExponentialWithJitterBackoff(base=0.05, cap=0.8)

# Errors of a server that takes no call of this kind at the moment, for any data.
# redis-py has classes for some of them, and removes the word from the message.
_STATE_ERRORS = (
    *(AuthenticationError, ClusterDownError, NoPermissionError, NoScriptError, OutOfMemoryError),
    *(ReadOnlyError, TryAgainError),
)
_STATE_WORDS = (
    *("BUSY", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "MISCONF", "NOAUTH", "NOPERM"),
    *("NOREPLICAS", "NOSCRIPT", "OOM", "READONLY", "TRYAGAIN", "UNKILLABLE"),
)


def connect(url: str, *, impatient: bool = False) -> Redis:
    """Return a client for a broker URL. Nothing is sent before the first call.

    An impatient client, for a probe, waits a short time for each reply and repeats nothing.
    """
    retry = Retry(_BACKOFF, 0 if impatient else _NUM_RETRIES)
    options = _OPTIONS | _IMPATIENT_OPTIONS if impatient else _OPTIONS
    pool = ConnectionPool.from_url(redis_url(url), retry=retry, **options)
    kind = pool.connection_class
    pool.connection_class = type(kind.__name__, (_LeavesReplica, kind), {})
    return Redis.from_pool(pool)


def async_connect(url: str) -> AsyncRedis:
    """Return an asyncio client for a broker URL. Nothing is sent before the first call.

    It belongs to the event loop that it is first used in; `WrongEventLoop` refuses any other.
    """
    retry = AsyncRetry(_BACKOFF, _NUM_RETRIES)
    pool = _PoolOfOneLoop.from_url(redis_url(url), retry=retry, **_OPTIONS)
    kind = pool.connection_class
    pool.connection_class = type(kind.__name__, (_AsyncConnection, kind), {})
    return AsyncRedis.from_pool(pool)


class _PoolOfOneLoop(AsyncConnectionPool):
    """A connection pool that refuses any event loop but the one that first used it."""

    _loop: asyncio.AbstractEventLoop | None = None

    async def get_connection(self, *args: Any, **kwargs: Any) -> Any:
        """Take a connection, as every command does before it sends anything."""
        self._check_loop()
        pool: Any = super()
        return await pool.get_connection(*args, **kwargs)

    async def disconnect(self, *args: Any, **kwargs: Any) -> None:
        """Close the connections."""
        self._check_loop()
        await super().disconnect(*args, **kwargs)

    def _check_loop(self) -> None:
        loop = asyncio.get_running_loop()
        self._loop = self._loop or loop
        if self._loop is not loop:
            raise WrongEventLoop(
                "this AsyncClient was used in another event loop before, which its connections "
                "belong to; make one client per loop, in the loop"
            )


class _LeavesReplica:
    """Makes a connection close before its next command if its server has become a replica.

    A failover behind one address leaves the connections to the old primary open. It refuses every
    write from then on, so only a new connection, with a new lookup of the name, finds the primary.
    """

    _is_replica = False

    def read_response(self, *args: Any, **kwargs: Any) -> Any:
        """Read a reply, as the class of the connection does."""
        connection: Any = super()
        try:
            return connection.read_response(*args, **kwargs)
        except _REPLICA_ERRORS:
            self._is_replica = True
            raise

    def send_packed_command(self, *args: Any, **kwargs: Any) -> None:
        """Send on a new connection if the old one leads to a replica."""
        connection: Any = super()
        if self._is_replica:
            self._is_replica = False
            connection.disconnect()
        connection.send_packed_command(*args, **kwargs)


class _AsyncConnection:
    """The same for asyncio; it also raises `CancelledError` if its task is cancelled in a send.

    Before Python 3.12, `asyncio.wait_for`, through which redis-py sends, swallows a cancellation
    that arrives just when the send is done. The task still counts it, but without this a loop of
    calls would never end. Every asyncio wait and every asyncio client sends through here.
    """

    _is_replica = False

    async def read_response(self, *args: Any, **kwargs: Any) -> Any:
        """Read a reply, as the class of the connection does."""
        connection: Any = super()
        try:
            return await connection.read_response(*args, **kwargs)
        except _REPLICA_ERRORS:
            self._is_replica = True
            raise

    async def send_packed_command(self, *args: Any, **kwargs: Any) -> None:
        """Send on a new connection if the old one leads to a replica."""
        connection: Any = super()
        if self._is_replica:
            self._is_replica = False
            await connection.disconnect(nowait=True)
        num_before = _num_cancellations()
        await connection.send_packed_command(*args, **kwargs)
        if _num_cancellations() > num_before:
            # The reply will not be read, and must not become the reply to the next command.
            await connection.disconnect(nowait=True)
            raise asyncio.CancelledError


def _num_cancellations() -> int:
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()


def is_server_fault(error: ResponseError) -> bool:
    """Return whether the server's state, which may pass, causes an error, not the stored data."""
    return isinstance(error, _STATE_ERRORS) or str(error).startswith(_STATE_WORDS)
