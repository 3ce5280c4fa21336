"""Deduplication for webhook receivers: the ids of handled events, kept in Redis."""

from __future__ import annotations

from redis import Redis
from redis.asyncio import Redis as AsyncRedis

#: Longer than the retries of an event (76 hours), with days to spare for a manual redelivery.
SEEN_TTL_S = 7 * 24 * 3600
_PREFIX = "batchmill-seen:"


class SeenEvents:
    """Remembers event ids for all processes of a receiver.

    Delivery is at least once: a receiver whose response was lost gets the event again::

        if not seen.first_time(event.id):
            return 200
        try:
            use(event)
        except Exception:
            seen.forget(event.id)
            raise

    If a receiver dies in between, the id is remembered although the event was not used. To prevent
    that, store the ids in the database transaction that uses the event instead.
    """

    def __init__(self, client: Redis, *, ttl_s: int = SEEN_TTL_S, prefix: str = _PREFIX) -> None:
        """Bind to the receiver's Redis, which need not be batchmill's.

        Args:
            client: Any client, whether it decodes replies or not.
            ttl_s: Seconds for which an id is remembered; a week outlasts every retry.
            prefix: Prefix of the keys, different for each receiver that handles events on its own.
        """
        self._client = client
        self._ttl_s = ttl_s
        self._prefix = prefix

    def first_time(self, event_id: str) -> bool:
        """Remember an id; return True if it is new, False if the event was handled before.

        Raises:
            redis.exceptions.RedisError: Redis failed; respond with 503, and the event comes again.
        """
        return bool(self._client.set(self._prefix + event_id, 1, nx=True, ex=self._ttl_s))

    def forget(self, event_id: str) -> None:
        """Forget an id, because the event could not be used and must come again.

        Raises:
            redis.exceptions.RedisError: Redis failed; the id is still remembered.
        """
        self._client.delete(self._prefix + event_id)


class AsyncSeenEvents:
    """`SeenEvents` for asyncio. Both classes may share their keys."""

    def __init__(
        self, client: AsyncRedis, *, ttl_s: int = SEEN_TTL_S, prefix: str = _PREFIX
    ) -> None:
        """Bind as `SeenEvents` does."""
        self._client = client
        self._ttl_s = ttl_s
        self._prefix = prefix

    async def first_time(self, event_id: str) -> bool:
        """Remember an id, as `SeenEvents.first_time` does."""
        return bool(await self._client.set(self._prefix + event_id, 1, nx=True, ex=self._ttl_s))

    async def forget(self, event_id: str) -> None:
        """Forget an id, as `SeenEvents.forget` does."""
        await self._client.delete(self._prefix + event_id)
