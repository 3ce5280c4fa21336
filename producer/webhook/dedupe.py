"""Each webhook once: a receiver's memory of the events that it has dealt with, in Redis."""

from __future__ import annotations

from redis import Redis
from redis.asyncio import Redis as AsyncRedis

#: Longer than an event is tried (76 hours), with days to spare for events sent again by hand.
SEEN_TTL_S = 7 * 24 * 3600
_PREFIX = "batchmill-seen:"


class SeenEvents:
    """Remembers event ids, for all of a receiver's processes.

    Delivery is at least once: a receiver whose answer was lost gets the event again::

        if not seen.first_time(event.id):
            return 200
        try:
            use(event)
        except Exception:
            seen.forget(event.id)
            raise

    A receiver that dies between the two leaves the id remembered and the event unused. Where that
    must not happen, keep the ids in the same database transaction that uses the event instead.
    """

    def __init__(self, client: Redis, *, ttl_s: int = SEEN_TTL_S, prefix: str = _PREFIX) -> None:
        """Bind to a receiver's own Redis, which need not be batchmill's.

        Args:
            client: any client, whether it decodes answers or not.
            ttl_s: seconds that an id is remembered; a week outlasts every retry.
            prefix: of the keys, one for each receiver that uses events on its own.
        """
        self._client = client
        self._ttl_s = ttl_s
        self._prefix = prefix

    def first_time(self, event_id: str) -> bool:
        """Remember an id; True where nobody had it, False where the event has been dealt with.

        Raises:
            redis.exceptions.RedisError: Redis did not answer: answer 503, and it comes again.
        """
        return bool(self._client.set(self._prefix + event_id, 1, nx=True, ex=self._ttl_s))

    def forget(self, event_id: str) -> None:
        """Take an id back: using the event failed, and it is to come again.

        Raises:
            redis.exceptions.RedisError: Redis did not answer; the id is remembered.
        """
        self._client.delete(self._prefix + event_id)


class AsyncSeenEvents:
    """`SeenEvents` for receivers with an event loop. Both kinds may share their keys."""

    def __init__(
        self, client: AsyncRedis, *, ttl_s: int = SEEN_TTL_S, prefix: str = _PREFIX
    ) -> None:
        """As `SeenEvents`."""
        self._client = client
        self._ttl_s = ttl_s
        self._prefix = prefix

    async def first_time(self, event_id: str) -> bool:
        """As `SeenEvents.first_time`."""
        return bool(await self._client.set(self._prefix + event_id, 1, nx=True, ex=self._ttl_s))

    async def forget(self, event_id: str) -> None:
        """As `SeenEvents.forget`."""
        await self._client.delete(self._prefix + event_id)
