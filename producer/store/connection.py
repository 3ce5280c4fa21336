"""Redis clients with the protocol's timeouts and retries, and what asyncio needs on top.

The differences between the synchronous and the asyncio clients are all here and in `call_limits`,
apart from `await`: redis-py's pool makes new connections after a fork, and the classes below keep
an asyncio client to one event loop and make a cancelled task end.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Iterator
from typing import Any

from redis import ConnectionPool, Redis
from redis.asyncio import Redis as AsyncRedis
from redis.asyncio.connection import ConnectionPool as AsyncConnectionPool
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

from batchmill.producer.broker_url import check_timeout_s, find_timeout_s, redis_url
from batchmill.producer.errors import WrongEventLoop

from .call_limits import AsyncLimitedRetry, LimitedRetry, limited_timeout
from .primary import async_following_primary, following_primary, sentinel_service, server_url
from .server_version import check_greeting

#: A server refuses writes because it is a replica, or all calls because its primary is gone.
REPLICA_ERRORS = (ReadOnlyError, MasterDownError)
# A call whose reply was lost is repeated, which every script is made for. Five times within about
# two seconds: enough for a dropped connection, while a wrong address soon becomes an error.
_NUM_RETRIES = 5
_MAX_CONNECT_TIMEOUT_S = 3.0


def _options(timeout_s: float, num_retries: int) -> dict[str, Any]:
    # A connection that is cut silently is noticed in time for a second attempt on a new one.
    attempt_s = timeout_s if num_retries == 0 else timeout_s / 2
    return {
        "socket_timeout": attempt_s,
        "socket_connect_timeout": min(_MAX_CONNECT_TIMEOUT_S, attempt_s),
        "health_check_interval": 10,
        "decode_responses": False,
        # A server that has just become a replica: the retry makes a new connection.
        "retry_on_error": list(REPLICA_ERRORS) if num_retries else [],
    }


_UNEXPECTED_ARGUMENT = re.compile(r"unexpected keyword argument '(.+)'")

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
# What redis-py writes before the server's words if the command was one of a pipeline.
_OF_A_PIPELINE = re.compile(
    r"\ACommand # \d+ \(.*\) of pipeline caused error: (?:\(['\"])?", re.DOTALL
)


def connect(
    url: str,
    *,
    timeout_s: float | None = None,
    num_retries: int = _NUM_RETRIES,
    shard_name: str = "",
) -> Redis:
    """Return a client for a broker URL. Nothing is sent before the first call.

    Args:
        url: a broker URL.
        timeout_s: seconds that one call may take in all, with connecting and repeats; None takes
            `BATCHMILL_BROKER_TIMEOUT_S`.
        num_retries: how often a call is repeated if the connection fails.
        shard_name: of the broker, if it is one of several; errors name it.

    Raises:
        ValueError: the URL, one of its options or the timeout is invalid.
    """
    timeout_s = find_timeout_s() if timeout_s is None else check_timeout_s(timeout_s)
    retry = LimitedRetry(timeout_s, num_retries, shard_name)
    options = _options(timeout_s, num_retries)
    url = redis_url(url)
    pool = ConnectionPool.from_url(server_url(url), retry=retry, **options)
    _check_options(pool)
    kind = following_primary(pool.connection_class, sentinel_service(url))
    pool.connection_class = type(kind.__name__, (_Connection, kind), {})
    return Redis.from_pool(pool)


def async_connect(url: str, *, timeout_s: float | None = None, shard_name: str = "") -> AsyncRedis:
    """Return an asyncio client for a broker URL. Nothing is sent before the first call.

    It belongs to the event loop that it is first used in; `WrongEventLoop` refuses any other.

    Args:
        url: a broker URL.
        timeout_s: seconds that one call may take in all, with connecting and repeats; None takes
            `BATCHMILL_BROKER_TIMEOUT_S`.
        shard_name: as of `connect`.

    Raises:
        ValueError: the URL, one of its options or the timeout is invalid.
    """
    timeout_s = find_timeout_s() if timeout_s is None else check_timeout_s(timeout_s)
    retry = AsyncLimitedRetry(timeout_s, _NUM_RETRIES, shard_name)
    options = _options(timeout_s, _NUM_RETRIES)
    url = redis_url(url)
    pool = _PoolOfOneLoop.from_url(server_url(url), retry=retry, **options)
    _check_options(pool)
    found: Any = pool.connection_class
    kind = async_following_primary(found, sentinel_service(url))
    pool.connection_class = type(kind.__name__, (_AsyncConnection, kind), {})
    return AsyncRedis.from_pool(pool)


def _check_options(pool: ConnectionPool | AsyncConnectionPool) -> None:
    """Refuse an option of the URL that redis-py would stumble over at the first call.

    Making a connection object opens nothing.
    """
    try:
        pool.connection_class(**pool.connection_kwargs)
    except TypeError as error:
        unknown = _UNEXPECTED_ARGUMENT.search(str(error))
        if unknown is None:
            raise
        raise ValueError(
            f"the broker URL has the option {unknown[1]!r}, which redis-py does not know; remove "
            "it, or check its spelling (for example ssl_ca_certs, socket_timeout)"
        ) from error


def timeout_of(client: Redis | AsyncRedis) -> float | None:
    """Return the seconds that one call of a client may take; None if it sets no limit."""
    retry = client.connection_pool.connection_kwargs.get("retry")
    return getattr(retry, "timeout_s", None)


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


def leaving_replicas(kind: type) -> type:
    """Return a class of connections, of redis-py, that close if their server becomes a replica."""
    return type(kind.__name__, (_LeavesReplica, kind), {})


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
        except REPLICA_ERRORS:
            self._is_replica = True
            raise

    def send_packed_command(self, *args: Any, **kwargs: Any) -> None:
        """Send on a new connection if the old one leads to a replica."""
        connection: Any = super()
        self._leave_replica()
        connection.send_packed_command(*args, **kwargs)

    def _leave_replica(self) -> None:
        if self._is_replica:
            self._is_replica = False
            connection: Any = self
            connection.disconnect()


class _Connection(_LeavesReplica):
    """A connection with limited waits, which closes if its server has become a replica."""

    _socket_connect_timeout: float

    @property
    def socket_connect_timeout(self) -> float:
        """Seconds to wait for a connection."""
        return limited_timeout(self._socket_connect_timeout)

    @socket_connect_timeout.setter
    def socket_connect_timeout(self, timeout_s: float) -> None:
        self._socket_connect_timeout = timeout_s

    def read_response(self, *args: Any, **kwargs: Any) -> Any:
        """Read a reply; refuse a server that is not supported when it greets."""
        self._limit_waits()
        reply = super().read_response(*args, **kwargs)
        check_greeting(reply)
        return reply

    def send_packed_command(self, command: Any, *args: Any, **kwargs: Any) -> None:
        """Send within the limit, and not to a replica."""
        self._leave_replica()
        super().send_packed_command(self._within_limit(command), *args, **kwargs)

    def _within_limit(self, pieces: Iterable[bytes]) -> Iterator[bytes]:
        """Yield pieces, which redis-py sends one after another, and limit the wait for each."""
        for piece in pieces:
            self._limit_waits()
            yield piece

    def _limit_waits(self) -> None:
        connection: Any = self
        if connection._sock is None:
            return
        timeout_s = limited_timeout(connection.socket_timeout)
        if connection._sock.gettimeout() != timeout_s:  # setting it is a system call
            connection._sock.settimeout(timeout_s)


class _AsyncConnection:
    """The same for asyncio; it also raises `CancelledError` if its task is cancelled in a send.

    Before Python 3.12, `asyncio.wait_for`, through which redis-py sends, swallows a cancellation
    that arrives just when the send is done. The task still counts it, but without this a loop of
    calls would never end. Every asyncio wait and every asyncio client sends through here.
    """

    _is_replica = False
    _timeout_s: float
    _connect_timeout_s: float

    @property
    def socket_timeout(self) -> float:
        """Seconds to wait for a reply or a send."""
        return limited_timeout(self._timeout_s)

    @socket_timeout.setter
    def socket_timeout(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s

    @property
    def socket_connect_timeout(self) -> float:
        """Seconds to wait for a connection."""
        return limited_timeout(self._connect_timeout_s)

    @socket_connect_timeout.setter
    def socket_connect_timeout(self, timeout_s: float) -> None:
        self._connect_timeout_s = timeout_s

    async def read_response(self, *args: Any, **kwargs: Any) -> Any:
        """Read a reply; refuse a server that is not supported when it greets."""
        connection: Any = super()
        try:
            reply = await connection.read_response(*args, **kwargs)
        except REPLICA_ERRORS:
            self._is_replica = True
            raise
        check_greeting(reply)
        return reply

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
    words = _OF_A_PIPELINE.sub("", str(error), count=1)
    return isinstance(error, _STATE_ERRORS) or words.startswith(_STATE_WORDS)
