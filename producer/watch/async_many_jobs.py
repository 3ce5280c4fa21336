"""Waiting for the ends of any number of jobs, over one connection.

Each job's channel is subscribed to. All records are also read at intervals, in case a message was
lost while the connection was cut.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import Any

from redis.exceptions import TimeoutError as RedisTimeoutError

from batchmill.producer.protocol import keys, reads
from batchmill.producer.store.async_store import AsyncStore
from batchmill.producer.store.ended_jobs import chunks

from . import wait_limits
from .channel_messages import Watched
from .wait_limits import CONNECTION_ERRORS, Outage

#: Channels in one SUBSCRIBE, and records read in one round trip.
MAX_AT_ONCE = 500
#: Time for the broker to confirm a subscription.
CONFIRM_LIMIT_S = 10.0


class AsyncEndWatch:
    """Reports the end of each job once. Owns one connection. Not for use by several tasks."""

    def __init__(self, store: AsyncStore) -> None:
        self._store = store
        self._watched = Watched()
        self._outage = Outage()
        #: Why the broker could not be reached at the last check; None if it replied.
        self.connection_error: Exception | None = None
        self._pubsub: Any = None
        self._looked_at = time.monotonic()

    def __len__(self) -> int:
        """Jobs that are waited for."""
        return len(self._watched.pending)

    @property
    def pending_ids(self) -> list[str]:
        """Jobs that are waited for."""
        return list(self._watched.pending)

    def add(self, job_ids: Iterable[str]) -> None:
        """Begin to wait for jobs. A job that has ended, or does not exist, is reported at once."""
        self._watched.add(job_ids)

    async def aclose(self) -> None:
        """Give the connection back."""
        if self._pubsub is not None:
            pubsub, self._pubsub = self._pubsub, None
            await pubsub.aclose()

    async def next_ended(self, wait_s: float) -> list[str]:
        """Return jobs that have ended, each once; empty if none ends within `wait_s`.

        Raises:
            redis.exceptions.ConnectionError: the broker has been away for `OUTAGE_LIMIT_S`.
        """
        try:
            await self._subscribe()
            if not self._watched.has_ended and len(self):
                await self._listen(wait_s)
            if time.monotonic() - self._looked_at >= wait_limits.POLL_INTERVAL_S:
                await self._look(list(self._watched.pending))
                self._looked_at = time.monotonic()
            self._outage.end()
            self.connection_error = None
        except CONNECTION_ERRORS as error:
            self.connection_error = error
            await self._lose_connection()
            await asyncio.sleep(self._outage.pause_s(error))
        ended = self._watched.take_ended()
        if ended and self._pubsub is not None:
            try:
                await self._pubsub.unsubscribe(*map(keys.channel, ended))
            except CONNECTION_ERRORS:
                await self._lose_connection()
        return ended

    async def _lose_connection(self) -> None:
        await self.aclose()
        self._watched.lose_connection()

    async def _subscribe(self) -> None:
        """Subscribe to new jobs, then read each record once, so that no end can be missed."""
        for job_ids in chunks(list(self._watched.unsubscribed), MAX_AT_ONCE):
            if self._pubsub is None:
                self._pubsub = self._store.pubsub()
            await self._pubsub.subscribe(*map(keys.channel, job_ids))
            missing = set(job_ids)
            deadline = time.monotonic() + CONFIRM_LIMIT_S
            while missing:
                if time.monotonic() > deadline:
                    raise RedisTimeoutError("the broker does not confirm a subscription")
                message = await self._pubsub.get_message(timeout=1.0)
                missing.discard(self._watched.note_message(message) or "")
            for job_id in job_ids:
                self._watched.unsubscribed.pop(job_id, None)
            await self._look(job_ids)

    async def _listen(self, wait_s: float) -> None:
        """Wait up to `wait_s` for the first end, then take all messages that have arrived."""
        until = time.monotonic() + min(wait_s, wait_limits.POLL_INTERVAL_S)
        while not self._watched.has_ended and (left_s := until - time.monotonic()) > 0:
            self._watched.note_message(await self._pubsub.get_message(timeout=left_s))
        for _ in range(MAX_AT_ONCE):
            message = await self._pubsub.get_message(timeout=0.0)
            if message is None:
                return
            self._watched.note_message(message)

    async def _look(self, job_ids: Iterable[str]) -> None:
        for some in chunks(list(job_ids), MAX_AT_ONCE):
            states = await self._store.read(reads.job_states(some))
            for job_id, state in zip(some, states, strict=True):
                self._watched.note_state(job_id, state)
