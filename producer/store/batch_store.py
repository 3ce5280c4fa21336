"""Reading batches: their records, their jobs in the order of the input, and how those ended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from batchmill.producer.job.batch import BatchStatus, read_batch
from batchmill.producer.protocol import keys

from .async_job_store import AsyncJobStore
from .job_store import JobStore
from .read_ends import EndedJob

#: Jobs of a batch that are listed in one round trip.
PAGE_JOBS = 500


@dataclass(frozen=True, slots=True)
class BatchEntry:
    """One line of a batch whose job has ended.

    Attributes:
        index: its place in the input, from 0.
        custom_id: the caller's name for it; empty where it has none or its record is gone.
        endpoint: OpenAI's path of the answer's shape; empty where its record is gone.
        job: how it ended; `job.result()` returns the result or raises.
    """

    index: int
    custom_id: str
    endpoint: str
    job: EndedJob


#: A page of a batch's jobs: their places in the input and their ids.
Page = list[tuple[int, str]]


class BatchStore:
    """Reads batches. Owns nothing but the store it is given.

    Every call may raise `redis.exceptions.RedisError`.
    """

    def __init__(self, store: JobStore) -> None:
        """Bind to a store."""
        self._store = store

    def load(self, batch_id: str) -> BatchStatus | None:
        """Return a batch, or None where it is unknown or its time to live has run out."""
        return self.load_many([batch_id])[0]

    def load_many(self, batch_ids: Sequence[str]) -> list[BatchStatus | None]:
        """Return batches in one round trip; None where one is unknown."""
        with self._store.client.pipeline(transaction=True) as pipeline:
            _queue_batches(pipeline, batch_ids)
            return _read_batches(pipeline.execute())

    def newest(self, limit: int) -> list[BatchStatus]:
        """Return the newest batches, newest first."""
        ids: Any = self._store.client.zrevrange(keys.BATCHES, 0, limit - 1)
        return [batch for batch in self.load_many([i.decode() for i in ids]) if batch is not None]

    def page(self, batch_id: str, after_index: int) -> Page:
        """Return the jobs of the next lines after one, in the order of the input."""
        return _read_page(self._store.client.zrangebyscore(*_page_of(batch_id, after_index)))

    def entries(self, page: Page) -> list[BatchEntry]:
        """Return how the jobs of a page ended."""
        ends = self._store.load_ends([job_id for _, job_id in page])
        with self._store.client.pipeline(transaction=False) as pipeline:
            _queue_names(pipeline, page)
            return _read_entries(page, ends, pipeline.execute())


class AsyncBatchStore:
    """The asyncio twin of `BatchStore`."""

    def __init__(self, store: AsyncJobStore) -> None:
        """Bind to a store."""
        self._store = store

    async def load(self, batch_id: str) -> BatchStatus | None:
        """As `BatchStore.load`."""
        return (await self.load_many([batch_id]))[0]

    async def load_many(self, batch_ids: Sequence[str]) -> list[BatchStatus | None]:
        """As `BatchStore.load_many`."""
        async with self._store.client.pipeline(transaction=True) as pipeline:
            _queue_batches(pipeline, batch_ids)
            return _read_batches(await pipeline.execute())

    async def newest(self, limit: int) -> list[BatchStatus]:
        """As `BatchStore.newest`."""
        ids: Any = await self._store.client.zrevrange(keys.BATCHES, 0, limit - 1)
        batches = await self.load_many([i.decode() for i in ids])
        return [batch for batch in batches if batch is not None]

    async def page(self, batch_id: str, after_index: int) -> Page:
        """As `BatchStore.page`."""
        return _read_page(await self._store.client.zrangebyscore(*_page_of(batch_id, after_index)))

    async def entries(self, page: Page) -> list[BatchEntry]:
        """As `BatchStore.entries`."""
        ends = await self._store.load_ends([job_id for _, job_id in page])
        async with self._store.client.pipeline(transaction=False) as pipeline:
            _queue_names(pipeline, page)
            return _read_entries(page, ends, await pipeline.execute())


def _queue_batches(pipeline: Any, batch_ids: Sequence[str]) -> None:
    for batch_id in batch_ids:
        pipeline.hgetall(keys.batch(batch_id))
        pipeline.zcard(keys.batch_jobs(batch_id))


def _read_batches(replies: Sequence[Any]) -> list[BatchStatus | None]:
    return [read_batch(replies[i], replies[i + 1]) for i in range(0, len(replies), 2)]


def _page_of(batch_id: str, after_index: int) -> tuple[Any, ...]:
    """Arguments of the clients' `zrangebyscore`: key, range, offset, count, with scores."""
    return keys.batch_jobs(batch_id), f"({after_index}", "+inf", 0, PAGE_JOBS, True


def _read_page(reply: Any) -> Page:
    return [(int(index), job_id.decode()) for job_id, index in reply]


def _queue_names(pipeline: Any, page: Page) -> None:
    for _, job_id in page:
        pipeline.hmget(keys.job(job_id), "custom_id", "endpoint")


def _read_entries(page: Page, ends: list[EndedJob], names: Sequence[Any]) -> list[BatchEntry]:
    return [
        BatchEntry(index, (custom_id or b"").decode(), (endpoint or b"").decode(), end)
        for (index, _), end, (custom_id, endpoint) in zip(page, ends, names, strict=True)
    ]
