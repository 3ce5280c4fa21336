"""Redis clients with the time-outs and retries that the protocol wants."""

from __future__ import annotations

import asyncio
from typing import Any

from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from redis.asyncio.connection import ConnectionPool as AsyncConnectionPool
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import (
    AuthenticationError,
    ClusterDownError,
    NoPermissionError,
    NoScriptError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
    TryAgainError,
)
from redis.retry import Retry

from batchmill.producer.broker_url import redis_url

# A connection that is cut without a word is noticed after socket_timeout. Without it a half-open
# connection hangs for ever.
_OPTIONS: dict[str, Any] = {
    "socket_timeout": 10,
    "socket_connect_timeout": 3,
    "health_check_interval": 10,
    "decode_responses": False,
}
# A call whose answer was lost is repeated, which every script is made for. Five times within about
# two seconds: enough for a dropped connection, and a wrong address is an error soon. (redis-py's
# own default goes on for half a minute.)
_NUM_RETRIES = 5
_BACKOFF = ExponentialWithJitterBackoff(base=0.05, cap=0.8)

# What a server answers while it takes no call of this kind, whatever the data is.
# redis-py has classes for some, and takes the word away.
_STATE_ERRORS = (
    *(AuthenticationError, ClusterDownError, NoPermissionError, NoScriptError, OutOfMemoryError),
    *(ReadOnlyError, TryAgainError),
)
_STATE_WORDS = (
    *("BUSY", "CLUSTERDOWN", "LOADING", "MASTERDOWN", "MISCONF", "NOAUTH", "NOPERM"),
    *("NOREPLICAS", "NOSCRIPT", "OOM", "READONLY", "TRYAGAIN", "UNKILLABLE"),
)


def connect(url: str) -> Redis:
    """Return a client for a broker URL. Nothing is sent before the first call."""
    return Redis.from_url(redis_url(url), retry=Retry(_BACKOFF, _NUM_RETRIES), **_OPTIONS)


def connect_async(url: str) -> AsyncRedis:
    """Return an asyncio client for a broker URL. Nothing is sent before the first call."""
    retry = AsyncRetry(_BACKOFF, _NUM_RETRIES)
    pool = AsyncConnectionPool.from_url(redis_url(url), retry=retry, **_OPTIONS)
    kind = pool.connection_class
    pool.connection_class = type(kind.__name__, (_KeepsCancellation, kind), {})
    return AsyncRedis.from_pool(pool)


class _KeepsCancellation:
    """Makes a connection raise `CancelledError` if its task is cancelled during a send.

    Before Python 3.12, `asyncio.wait_for`, through which redis-py sends, swallows a cancellation
    that arrives just when the send is done. The task still counts it, but without this a loop of
    calls would go on for ever. Every asyncio wait and every asyncio client sends through here.
    """

    async def send_packed_command(self, *args: Any, **kwargs: Any) -> None:
        """Send, as the class of the connection does."""
        connection: Any = super()
        num_before = _num_cancellations()
        await connection.send_packed_command(*args, **kwargs)
        if _num_cancellations() > num_before:
            # The reply will not be read, and must not become the reply to the next command.
            await connection.disconnect(nowait=True)
            raise asyncio.CancelledError


def _num_cancellations() -> int:
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()


def is_servers_fault(error: ResponseError) -> bool:
    """Whether a refusal comes from the server's state, and may pass; else the data is at fault."""
    return isinstance(error, _STATE_ERRORS) or str(error).startswith(_STATE_WORDS)
