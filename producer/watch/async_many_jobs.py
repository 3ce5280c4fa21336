"""The asyncio twin of `end_watch`."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

from redis.asyncio.client import PubSub
from redis.exceptions import TimeoutError as RedisTimeoutError

from batchmill.producer.protocol import keys
from batchmill.producer.store.async_job_store import AsyncJobStore
from batchmill.producer.store.read_ends import chunks

from .many_jobs import CONFIRM_LIMIT_S, MAX_AT_ONCE, Outage, Watched
from .one_job import CONNECTION_ERRORS, POLL_INTERVAL_S


class AsyncEndWatch:
    """Owns one connection, and tells of each job once. Not for several tasks."""

    def __init__(self, store: AsyncJobStore) -> None:
        self._store = store
        self._watched = Watched()
        self._outage = Outage()
        self._pubsub: PubSub | None = None
        self._looked_at = time.monotonic()

    def __len__(self) -> int:
        """Jobs that are waited for."""
        return len(self._watched.pending)

    def add(self, job_ids: Iterable[str]) -> None:
        """As `EndWatch.add`."""
        self._watched.add(job_ids)

    async def close(self) -> None:
        """Give the connection back."""
        if self._pubsub is not None:
            pubsub, self._pubsub = self._pubsub, None
            await pubsub.aclose()

    async def next_ended(self, wait_s: float) -> list[str]:
        """As `EndWatch.next_ended`."""
        try:
            await self._subscribe()
            if not self._watched.has_ended and len(self):
                await self._listen(wait_s)
            if time.monotonic() - self._looked_at >= POLL_INTERVAL_S:
                await self._look(list(self._watched.pending))
                self._looked_at = time.monotonic()
            self._outage.over()
        except CONNECTION_ERRORS as error:
            await self._lose_connection()
            await asyncio.sleep(self._outage.check(error))
        ended = self._watched.take_ended()
        if ended and self._pubsub is not None:
            try:
                await self._pubsub.unsubscribe(*map(keys.channel, ended))
            except CONNECTION_ERRORS:
                await self._lose_connection()
        return ended

    async def _lose_connection(self) -> None:
        await self.close()
        self._watched.lose_connection()

    async def _subscribe(self) -> None:
        for job_ids in chunks(list(self._watched.unsubscribed), MAX_AT_ONCE):
            if self._pubsub is None:
                self._pubsub = self._store.client.pubsub()
            await self._pubsub.subscribe(*map(keys.channel, job_ids))
            missing = set(job_ids)
            deadline = time.monotonic() + CONFIRM_LIMIT_S
            while missing:
                if time.monotonic() > deadline:
                    raise RedisTimeoutError("the broker confirms no subscription")
                message = await self._pubsub.get_message(timeout=1.0)
                missing.discard(self._watched.note(message) or "")
            for job_id in job_ids:
                self._watched.unsubscribed.pop(job_id, None)
            await self._look(job_ids)

    async def _listen(self, wait_s: float) -> None:
        assert self._pubsub is not None
        until = time.monotonic() + min(wait_s, POLL_INTERVAL_S)
        while not self._watched.has_ended and (left_s := until - time.monotonic()) > 0:
            self._watched.note(await self._pubsub.get_message(timeout=left_s))
        for _ in range(MAX_AT_ONCE):
            message = await self._pubsub.get_message(timeout=0.0)
            if message is None:
                return
            self._watched.note(message)

    async def _look(self, job_ids: Iterable[str]) -> None:
        for some in chunks(list(job_ids), MAX_AT_ONCE):
            for job_id, state in zip(some, await self._store.states(some), strict=True):
                self._watched.note_state(job_id, state)
