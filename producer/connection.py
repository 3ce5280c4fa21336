"""Redis clients with the time-outs and retries that the protocol wants."""

from __future__ import annotations

from typing import Any

from redis import Redis
from redis.asyncio import Redis as AsyncRedis

from .broker_url import redis_url

# A connection that is cut without a word is noticed after socket_timeout; redis-py's own retry then
# repeats the call, which every script is made for. Without it a half-open connection hangs.
_OPTIONS: dict[str, Any] = {
    "socket_timeout": 10,
    "socket_connect_timeout": 3,
    "health_check_interval": 10,
    "decode_responses": False,
}


def connect(url: str) -> Redis:
    """Return a client for a broker URL. Nothing is sent before the first call."""
    return Redis.from_url(redis_url(url), **_OPTIONS)


def connect_async(url: str) -> AsyncRedis:
    """Return an asyncio client for a broker URL. Nothing is sent before the first call."""
    return AsyncRedis.from_url(redis_url(url), **_OPTIONS)
