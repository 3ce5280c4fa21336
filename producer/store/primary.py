"""Connections that ask Sentinel for the primary each time that they are made."""

from __future__ import annotations

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
    """Return host and port of the primary, from the first Sentinel that knows them.

    Raises:
        PrimaryUnknown: none of them does, or none replies.
    """
    asked = _Asked(service)
    for host, port in service.sentinels:
        client: Any = Redis(host=host, port=port, retry=Retry(NoBackoff(), 0), **_options(service))
        try:
            reply = client.sentinel_get_master_addr_by_name(service.service)
        except (RedisError, OSError) as error:
            asked.note(host, port, error)
            continue
        finally:
            client.close()
        if reply is not None:
            return reply[0], int(reply[1])
        asked.note(host, port, None)
    raise asked.error()


async def async_find_primary(service: SentinelService) -> tuple[str, int]:
    """Return the same in asyncio.

    Raises:
        PrimaryUnknown: none of them does, or none replies.
    """
    asked = _Asked(service)
    for host, port in service.sentinels:
        client: Any = AsyncRedis(
            host=host, port=port, retry=AsyncRetry(NoBackoff(), 0), **_options(service)
        )
        try:
            reply = await client.sentinel_get_master_addr_by_name(service.service)
        except (RedisError, OSError) as error:
            asked.note(host, port, error)
            continue
        finally:
            await client.aclose()
        if reply is not None:
            return reply[0], int(reply[1])
        asked.note(host, port, None)
    raise asked.error()


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


class _Asked:
    """What each Sentinel said, for the error."""

    def __init__(self, service: SentinelService) -> None:
        self._service = service
        self._notes: list[str] = []

    def note(self, host: str, port: int, error: Exception | None) -> None:
        why = "knows no such service" if error is None else f"{type(error).__name__}: {error}"
        self._notes.append(f"{host}:{port}: {why}")

    def error(self) -> PrimaryUnknown:
        return PrimaryUnknown(
            f"no Sentinel names a primary of {self._service.service!r}: "
            + "; ".join(self._notes)[:500]
        )


def _options(service: SentinelService) -> dict[str, Any]:
    timeout_s = limited_timeout(_TIMEOUT_S)
    return {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        "decode_responses": True,
        **dict(service.sentinel_options),
    }
