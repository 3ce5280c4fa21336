"""The asyncio client: the same verbs as `Client`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from types import TracebackType
from typing import Any, Self, TypeVar

from batchmill.producer.broker_url import find_broker
from batchmill.producer.errors import WrongEventLoop
from batchmill.producer.job.batch import BatchStatus, parse_batch
from batchmill.producer.protocol import calls
from batchmill.producer.protocol.replies import CancelAnswer
from batchmill.producer.results import JobResult, JobStatus
from batchmill.producer.settings import ProducerSettings
from batchmill.producer.store.async_job_store import AsyncJobStore
from batchmill.producer.store.batch_store import AsyncBatchStore, BatchEntry
from batchmill.producer.store.outcomes import accepted_id, broker_errors
from batchmill.producer.store.read_ends import MAX_READ_AT_ONCE, EndedJob, chunks
from batchmill.producer.store.read_progress import JobProgress
from batchmill.producer.store.read_stream import StreamPiece, StreamPosition
from batchmill.producer.store.submission import prepare
from batchmill.producer.watch.async_many_jobs import AsyncEndWatch
from batchmill.producer.watch.async_one_job import wait_until_ended
from batchmill.producer.watch.many_jobs import TimeBudget
from batchmill.producer.watch.stream import follow_async

from . import async_batch_verbs as async_batch_client
from .async_job_verbs import AsyncJobVerbs
from .batch_intake import BatchLine
from .batching import Batch, JobLike, OnRejected, as_job
from .job_verbs import ids_of

Line = TypeVar("Line")


class AsyncJob:
    """A submitted job, by its id. Holds no state: every call asks the broker."""

    __slots__ = ("_client", "id")

    def __init__(self, client: AsyncClient, job_id: str) -> None:
        self._client = client
        self.id = job_id

    def __repr__(self) -> str:
        return f"AsyncJob({self.id!r})"

    async def status(self) -> JobStatus:
        """As `Client.status`."""
        return await self._client.status(self.id)

    async def result(self, timeout_s: float | None = None) -> JobResult:
        """As `Client.result`."""
        return await self._client.result(self.id, timeout_s)

    def stream(
        self, position: StreamPosition | None = None, *, timeout_s: float | None = None
    ) -> AsyncIterator[StreamPiece]:
        """As `AsyncClient.stream`."""
        return self._client.stream(self.id, position, timeout_s=timeout_s)

    async def progress(self) -> JobProgress:
        """As `Client.progress`."""
        return await self._client.progress(self.id)

    async def cancel(self) -> CancelAnswer:
        """As `Client.cancel`."""
        return await self._client.cancel(self.id)

    async def retry(self) -> int:
        """As `Client.retry`."""
        return await self._client.retry(self.id)

    async def forget(self) -> None:
        """As `Client.forget`."""
        await self._client.forget(self.id)


class AsyncClient(AsyncJobVerbs):
    """Submits jobs to a broker and reads what became of them.

    Belongs to the event loop that it is first used in, and so to one process: make it where the
    loop runs (in a framework's start-up hook), and one for each loop. Another loop is refused with
    `WrongEventLoop`, before anything is sent.

    >>> async with AsyncClient("redis://localhost:6379/0") as client:
    ...     job = await client.submit(prompt="Name three fruits.", max_tokens=32)
    ...     print((await job.result(timeout_s=60)).text)
    """

    def __init__(self, url: str | None = None, *, settings: ProducerSettings | None = None) -> None:
        """As `Client`."""
        self.settings = ProducerSettings() if settings is None else settings
        self._url = find_broker(url or self.settings.broker_url)
        self._unbound_store = AsyncJobStore.from_url(self._url)
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def _store(self) -> AsyncJobStore:
        """The store, for the event loop that its connections belong to."""
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        if self._loop is not loop:
            raise WrongEventLoop(
                "this AsyncClient was used in another event loop before, which its connections "
                "belong to; make one client for each loop, in the loop"
            )
        return self._unbound_store

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections. Jobs go on."""
        await self._store.close()

    async def submit(self, job: JobLike | None = None, /, **fields: Any) -> AsyncJob:
        """As `Client.submit`."""
        prepared = prepare(as_job(job, fields), self.settings)
        with broker_errors(self._url):
            answer = await self._store.run(calls.submit(prepared))
        return AsyncJob(self, accepted_id(prepared, answer))

    async def submit_many(
        self,
        jobs: Iterable[JobLike] | AsyncIterable[JobLike],
        *,
        on_rejected: OnRejected | None = None,
        wait_when_full_s: float | None = None,
    ) -> AsyncIterator[AsyncJob]:
        """As `Client.submit_many`; `jobs` may be an asynchronous iterable."""
        batch = Batch(self.settings, on_rejected, wait_when_full_s)
        index = 0
        async for job in _asynchronously(jobs):
            batch.add(index, job)
            index += 1
            if batch.must_be_sent:
                async for handle in self._send(batch):
                    yield handle
        async for handle in self._send(batch):
            yield handle

    def job(self, job_id: str) -> AsyncJob:
        """Return the handle of a job submitted earlier or elsewhere. Asks nothing."""
        return AsyncJob(self, job_id)

    async def result(self, job_id: str, timeout_s: float | None = None) -> JobResult:
        """As `Client.result`."""
        with broker_errors(self._url):
            await wait_until_ended(self._store, job_id, timeout_s)
            ended = (await self._store.load_ends([job_id]))[0]
        return ended.result()

    async def as_completed(
        self, jobs: Iterable[AsyncJob | str], *, timeout_s: float | None = None
    ) -> AsyncIterator[EndedJob]:
        """As `Client.as_completed`."""
        budget = TimeBudget(timeout_s)
        watch = AsyncEndWatch(self._store)
        watch.add(ids_of(jobs))
        try:
            with broker_errors(self._url):
                while len(watch):
                    ended = await watch.next_ended(budget.next_wait_s(len(watch)))
                    for some in chunks(ended, MAX_READ_AT_ONCE):
                        for end in await self._store.load_ends(some):
                            yield end
        finally:
            await watch.close()

    async def stream(
        self,
        job_id: str,
        position: StreamPosition | None = None,
        *,
        timeout_s: float | None = None,
    ) -> AsyncIterator[StreamPiece]:
        """As `Client.stream`."""
        with broker_errors(self._url):
            async for piece in follow_async(self._store, job_id, position, timeout_s):
                yield piece

    async def create_batch(
        self,
        jobs: Iterable[BatchLine] | AsyncIterable[BatchLine],
        /,
        *,
        on_rejected: OnRejected | None = None,
        **fields: Any,
    ) -> BatchStatus:
        """As `Client.create_batch`; `jobs` may be an asynchronous iterable."""
        request = parse_batch(fields)
        lines = _asynchronously(jobs)
        with broker_errors(self._url):
            return await async_batch_client.create_batch(
                self._store, self.settings, lines, request, on_rejected
            )

    async def batch(self, batch_id: str) -> BatchStatus:
        """As `Client.batch`."""
        with broker_errors(self._url):
            return await async_batch_client.status_of(self._store, batch_id)

    async def batches(self, limit: int = 100) -> list[BatchStatus]:
        """As `Client.batches`."""
        with broker_errors(self._url):
            return await AsyncBatchStore(self._store).newest(limit)

    async def cancel_batch(self, batch_id: str) -> BatchStatus:
        """As `Client.cancel_batch`."""
        with broker_errors(self._url):
            return await async_batch_client.cancel_batch(self._store, batch_id)

    async def batch_results(
        self, batch_id: str, *, timeout_s: float | None = None
    ) -> AsyncIterator[BatchEntry]:
        """As `Client.batch_results`."""
        with broker_errors(self._url):
            results = async_batch_client.batch_results(self._store, batch_id, timeout_s)
            async with contextlib.aclosing(results) as entries:
                async for entry in entries:
                    yield entry

    async def _send(self, batch: Batch) -> AsyncIterator[AsyncJob]:
        pause_s: float | None = 0.0
        while pause_s is not None:
            await asyncio.sleep(pause_s)
            with broker_errors(self._url):
                answers = await self._store.run_all(batch.calls())
            pause_s = batch.note(answers)
        for job_id in batch.take_ids():
            yield AsyncJob(self, job_id)
        batch.check()


async def _asynchronously(
    jobs: Iterable[Line] | AsyncIterable[Line],
) -> AsyncIterator[Line]:
    if isinstance(jobs, AsyncIterable):
        async for job in jobs:
            yield job
    else:
        for job in jobs:
            yield job
