"""Waiting for the ends of jobs that may be in several shards."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Final

from batchmill.producer.errors import ResultTimeout
from batchmill.producer.store.async_shards import AsyncShards
from batchmill.producer.store.async_store import AsyncStore

from .async_explanation import explained
from .async_many_jobs import AsyncEndWatch

#: With several shards, each is listened to for this long in turn.
_TURN_S: Final = 0.02


class AsyncFleetWatch:
    """Reports the end of each job once. Owns one connection per shard that has a job."""

    def __init__(self, shards: AsyncShards) -> None:
        self._shards = shards
        self._watches: dict[AsyncStore, AsyncEndWatch] = {}

    def __len__(self) -> int:
        """Jobs that are waited for."""
        return sum(map(len, self._watches.values()))

    @property
    def connection_error(self) -> Exception | None:
        """Why a broker could not be reached at the last check; None if all replied."""
        errors = (watch.connection_error for watch in self._watches.values())
        return next((error for error in errors if error is not None), None)

    async def aclose(self) -> None:
        """Give the connections back."""
        for watch in self._watches.values():
            await watch.aclose()

    async def add(self, job_ids: Sequence[str]) -> None:
        """Begin to wait for jobs. A job that has ended, or does not exist, is reported at once.

        Raises:
            ShardMismatch: a job is in a shard that the list does not name.
            redis.exceptions.RedisError: a broker did not reply.
        """
        for store, some in await self._shards.of_jobs(job_ids):
            self.add_to(store, some)

    def add_to(self, store: AsyncStore, job_ids: Iterable[str]) -> None:
        """Begin to wait for jobs of a known store."""
        if store not in self._watches:
            self._watches[store] = AsyncEndWatch(store)
        self._watches[store].add(job_ids)

    async def next_ended(self, wait_s: float) -> list[str]:
        """Return jobs that have ended, each once; empty if none ends within `wait_s`.

        Raises:
            redis.exceptions.ConnectionError: a broker has been away for `OUTAGE_LIMIT_S`.
        """
        watches = [watch for watch in self._watches.values() if len(watch)]
        if len(watches) == 1:
            return await watches[0].next_ended(wait_s)
        until = time.monotonic() + wait_s
        ended: list[str] = []
        while watches:
            for watch in watches:
                left_s = max(0.0, until - time.monotonic())
                ended += await watch.next_ended(0.0 if ended else min(_TURN_S, left_s))
            if ended or time.monotonic() >= until:
                break
        return ended

    async def explained(self, error: ResultTimeout) -> ResultTimeout:
        """Return the error of a caller whose time is over, with how far the jobs of a shard are."""
        store, watch = next((s, w) for s, w in self._watches.items() if len(w))
        return await explained(store, error, watch.pending_ids)
