"""Connections that ask Sentinel for the primary each time that they are made."""

from __future__ import annotations

import asyncio
import queue
import threading
from functools import cache
from typing import Any

from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.retry import Retry

from batchmill.producer.sentinel_url import SentinelService, is_sentinel_url, read_sentinel_url

from .call_limits import limited_timeout
from .sentinel_votes import Answer, SentinelVotes

#: Longest wait for one Sentinel: another one may know.
_TIMEOUT_S = 1.0


class PrimaryUnknown(RedisConnectionError):
    """No Sentinel named a primary. It is a connection error, so calls are repeated as after one."""


def sentinel_service(url: str) -> SentinelService | None:
    """Return the service that a broker URL names; None for the URL of a server.

    Raises:
        ValueError: it names Sentinels, and a part of it is missing or wrong.
    """
    return read_sentinel_url(url) if is_sentinel_url(url) else None


def server_url(url: str) -> str:
    """Return a broker URL in redis-py's format; of a service, with its name as the host."""
    service = sentinel_service(url)
    return url if service is None else service.server_url


@cache
def following_primary(kind: type, service: SentinelService | None) -> type:
    """Return a class of synchronous connections, of redis-py, that lead to a service's primary.

    Args:
        kind: the class.
        service: the service; None returns the class as it is.
    """
    if service is None:
        return kind
    return type(kind.__name__, (_FollowsPrimary, kind), {"_service": service})


@cache
def async_following_primary(kind: type, service: SentinelService | None) -> type:
    """Return the same for a class of asyncio connections."""
    if service is None:
        return kind
    return type(kind.__name__, (_AsyncFollowsPrimary, kind), {"_service": service})


def find_primary(service: SentinelService) -> tuple[str, int]:
    """Return host and port of the primary. All Sentinels are asked at once.

    What more than half of them say counts as soon as they have said it, so that a dead one costs no
    time; a Sentinel that was cut off may still name an old primary. Without such a majority it is
    what most of those say that reply in time.

    Raises:
        PrimaryUnknown: none of them knows it, or none replies.
    """
    votes = SentinelVotes(service)
    options = _options(service)
    answers: queue.SimpleQueue[Answer] = queue.SimpleQueue()

    def ask(host: str, port: int) -> None:
        answers.put(_ask(service, host, port, options))

    for host, port in service.sentinels:
        threading.Thread(target=ask, args=(host, port), name="sentinel", daemon=True).start()
    while votes.is_open:
        votes.note(answers.get())
    return _winner(votes)


async def async_find_primary(service: SentinelService) -> tuple[str, int]:
    """Return the same in asyncio.

    Raises:
        PrimaryUnknown: none of them knows it, or none replies.
    """
    votes = SentinelVotes(service)
    options = _options(service)
    asking = [
        asyncio.ensure_future(_async_ask(service, host, port, options))
        for host, port in service.sentinels
    ]
    try:
        for answer in asyncio.as_completed(asking):
            votes.note(await answer)
            if not votes.is_open:
                break
    finally:
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)
    return _winner(votes)


def _ask(service: SentinelService, host: str, port: int, options: dict[str, Any]) -> Answer:
    client: Any = Redis(host=host, port=port, retry=Retry(NoBackoff(), 0), **options)
    try:
        return Answer(host, port, client.sentinel_get_master_addr_by_name(service.service))
    except (RedisError, OSError) as error:
        return Answer(host, port, error=error)
    finally:
        client.close()


async def _async_ask(
    service: SentinelService, host: str, port: int, options: dict[str, Any]
) -> Answer:
    client: Any = AsyncRedis(host=host, port=port, retry=AsyncRetry(NoBackoff(), 0), **options)
    try:
        return Answer(host, port, await client.sentinel_get_master_addr_by_name(service.service))
    except (RedisError, OSError) as error:
        return Answer(host, port, error=error)
    finally:
        await client.aclose()


def _winner(votes: SentinelVotes) -> tuple[str, int]:
    winner = votes.winner()
    if winner is None:
        raise PrimaryUnknown(votes.problem())
    return winner


class _FollowsPrimary:
    """Finds the primary before it connects, and so also after each lost connection."""

    _service: SentinelService

    def _connect(self) -> Any:
        connection: Any = self
        connection.host, connection.port = find_primary(self._service)
        parent: Any = super()
        return parent._connect()


class _AsyncFollowsPrimary:
    """The same for asyncio."""

    _service: SentinelService

    async def _connect(self) -> None:
        connection: Any = self
        connection.host, connection.port = await async_find_primary(self._service)
        parent: Any = super()
        await parent._connect()


def _options(service: SentinelService) -> dict[str, Any]:
    timeout_s = limited_timeout(_TIMEOUT_S)
    return {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        "decode_responses": True,
        **dict(service.sentinel_options),
    }
