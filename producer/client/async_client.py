"""The asyncio client: `AsyncClient` and the handle `AsyncJob`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterable, AsyncIterator, Iterable
from types import TracebackType
from typing import Any, Self

from batchmill.producer.broker_url import find_broker
from batchmill.producer.job.batch import BatchStatus, parse_batch
from batchmill.producer.protocol.calls import jobs as job_calls
from batchmill.producer.protocol.replies import CancelAnswer
from batchmill.producer.results import JobResult, JobStatus
from batchmill.producer.settings import ProducerSettings
from batchmill.producer.store.async_store import AsyncStore
from batchmill.producer.store.batches import BatchEntry
from batchmill.producer.store.ended_jobs import MAX_ENDS_AT_ONCE, EndedJob, chunks, ended_jobs
from batchmill.producer.store.job_output import StreamPiece, StreamPosition
from batchmill.producer.store.job_progress import JobProgress
from batchmill.producer.store.reply_errors import accepted_id, broker_errors
from batchmill.producer.store.submission import prepare
from batchmill.producer.watch.async_many_jobs import AsyncEndWatch
from batchmill.producer.watch.async_one_job import wait_until_ended
from batchmill.producer.watch.async_stream import follow_output
from batchmill.producer.watch.wait_limits import TimeBudget

from . import async_batch_verbs
from .async_checks import check_structures
from .async_iteration import as_async
from .async_job_verbs import AsyncJobVerbs
from .batch_intake import BatchLine
from .job_groups import JobGroup, JobLike, OnRejected, as_job
from .job_ids import ids_of


class AsyncJob:
    """A submitted job, by its id. Holds no state: every call asks the broker."""

    __slots__ = ("_client", "id")

    def __init__(self, client: AsyncClient, job_id: str) -> None:
        self._client = client
        self.id = job_id

    def __repr__(self) -> str:
        return f"AsyncJob({self.id!r})"

    async def status(self) -> JobStatus:
        """As `AsyncClient.status`."""
        return await self._client.status(self.id)

    async def result(self, timeout_s: float | None = None) -> JobResult:
        """As `AsyncClient.result`."""
        return await self._client.result(self.id, timeout_s)

    def stream(
        self, position: StreamPosition | None = None, *, timeout_s: float | None = None
    ) -> AsyncIterator[StreamPiece]:
        """As `AsyncClient.stream`."""
        return self._client.stream(self.id, position, timeout_s=timeout_s)

    async def progress(self) -> JobProgress:
        """As `AsyncClient.progress`."""
        return await self._client.progress(self.id)

    async def cancel(self) -> CancelAnswer:
        """As `AsyncClient.cancel`."""
        return await self._client.cancel(self.id)

    async def retry(self) -> int:
        """As `AsyncClient.retry`."""
        return await self._client.retry(self.id)

    async def forget(self) -> None:
        """As `AsyncClient.forget`."""
        await self._client.forget(self.id)


class AsyncClient(AsyncJobVerbs):
    """Submits jobs to a broker and reads their results.

    Belongs to the event loop that it is first used in, and so to one process: make it where the
    loop runs (in a framework's start-up hook), and one per loop. Using it in another loop raises
    `WrongEventLoop` before anything is sent.

    Examples:
        >>> async with AsyncClient("redis://localhost:6379/0") as client:
        ...     job = await client.submit(prompt="Name three fruits.", max_tokens=32)
        ...     print((await job.result(timeout_s=60)).text)
    """

    def __init__(self, url: str | None = None, *, settings: ProducerSettings | None = None) -> None:
        """Find the broker; nothing is sent before the first call.

        Args:
            url: `redis://`, `rediss://` or `unix://`. None takes `BATCHMILL_BROKER_URL` or,
                without it, the embedded broker of this user.
            settings: None reads the environment.

        Raises:
            BrokerUnavailable: no URL is known and no embedded broker runs.
        """
        self.settings = ProducerSettings() if settings is None else settings
        self._url = find_broker(url or self.settings.broker_url)
        self._store = AsyncStore.from_url(self._url)

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
        """Close the connections. Jobs continue."""
        await self._store.aclose()

    async def submit(self, job: JobLike | None = None, /, **fields: Any) -> AsyncJob:
        """Store and announce a job, in one atomic step, and return its handle.

        Args:
            job: a `GenerationJob` or a mapping; or give its fields by name instead.
            **fields: the fields of a `GenerationJob`.

        Raises:
            JobRejected: the job is invalid (`code`, `param`), the queue is full, or its
                idempotency key stands for other content. Nothing was stored.
            BrokerUnavailable: the broker does not respond. The job may be stored or not; submit it
                again with an idempotency key to be sure that there is exactly one.
        """
        await check_structures(job, fields)
        prepared = prepare(as_job(job, fields), self.settings)
        with broker_errors(self._url):
            reply = await self._store.run(job_calls.submit(prepared))
        return AsyncJob(self, accepted_id(prepared, reply))

    async def submit_many(
        self,
        jobs: Iterable[JobLike] | AsyncIterable[JobLike],
        *,
        on_rejected: OnRejected | None = None,
        wait_when_full_s: float | None = None,
    ) -> AsyncIterator[AsyncJob]:
        """Submit jobs in groups, and yield their handles in order.

        Works as it is read: `jobs` may be endless, and memory does not grow with it. Nothing is
        sent before the first handle is asked for; this sends all:
        `[job async for job in client.submit_many(jobs)]`.

        Args:
            jobs: `GenerationJob` values or mappings, from an asynchronous iterable or another one.
            on_rejected: called with the index and the error of each rejected job, which then has
                no handle. None raises at the first, after the handles of those that were
                submitted with or before it.
            wait_when_full_s: if a limit on waiting jobs is reached, keep trying for this long
                before the job counts as rejected; each accepted job restarts the time. None
                rejects at once.

        Raises:
            JobRejected: as `submit`.
            BrokerUnavailable: as `submit`.
        """
        group = JobGroup(self.settings, on_rejected, wait_when_full_s)
        async for job in as_async(jobs):
            await check_structures(job, {})
            group.add(job)
            if group.must_be_sent:
                async for handle in self._send(group):
                    yield handle
        async for handle in self._send(group):
            yield handle

    def job(self, job_id: str) -> AsyncJob:
        """Return the handle of a job submitted earlier or elsewhere. Sends nothing."""
        return AsyncJob(self, job_id)

    async def result(self, job_id: str, timeout_s: float | None = None) -> JobResult:
        """Wait for the end of a job and return its result.

        Args:
            job_id: the job.
            timeout_s: how long to wait; None waits for as long as it takes, 0 does not wait.

        Raises:
            ResultTimeout: the job has not ended yet; it continues.
            JobFailed, JobCancelled, JobExpired: it ended without a completion; `code` says why,
                `result` holds the output so far, if there is any.
            UnknownJob: the job does not exist.
            BrokerUnavailable: the broker has not responded for half a minute.
        """
        with broker_errors(self._url):
            await wait_until_ended(self._store, job_id, timeout_s)
            ended = await self._store.read(ended_jobs([job_id]))
        return ended[0].result()

    async def as_completed(
        self, jobs: Iterable[AsyncJob | str], *, timeout_s: float | None = None
    ) -> AsyncIterator[EndedJob]:
        """Yield each job once, in the order in which they end.

        All are watched over one connection, whether there is one job or thousands. A job that ended
        without a completion is yielded like the others: its `result()` raises.

        Args:
            jobs: handles or ids; an id that is given twice is yielded once.
            timeout_s: how long to wait for all of them together; None waits as long as it takes.

        Raises:
            ResultTimeout: some have not ended; they continue.
            BrokerUnavailable: the broker has not responded for half a minute.
        """
        budget = TimeBudget(timeout_s)
        async with contextlib.aclosing(AsyncEndWatch(self._store)) as watch:
            watch.add(ids_of(jobs))
            with broker_errors(self._url):
                while len(watch):
                    ids = await watch.next_ended(budget.next_wait_s(len(watch)))
                    for some in chunks(ids, MAX_ENDS_AT_ONCE):
                        for ended in await self._store.read(ended_jobs(some)):
                            yield ended

    async def stream(
        self,
        job_id: str,
        position: StreamPosition | None = None,
        *,
        timeout_s: float | None = None,
    ) -> AsyncIterator[StreamPiece]:
        """Yield a job's output, text and token ids, as it is checkpointed, until it has ended.

        If a worker dies, the next one resumes from the last checkpoint.

        Args:
            job_id: the job.
            position: of the last piece that was read, to resume after it; None begins at the start.
            timeout_s: how long to wait for the end; None waits as long as it takes.

        Raises:
            JobFailed, JobCancelled, JobExpired: after the last piece, if it did not complete.
            OutputRestarted: a worker with another model started it over.
            ResultTimeout: it has not ended; it continues.
            UnknownJob: the job does not exist.
            BrokerUnavailable: the broker has not responded for half a minute.
        """
        output = follow_output(self._store, job_id, position, timeout_s)
        with broker_errors(self._url):
            async with contextlib.aclosing(output) as pieces:
                async for piece in pieces:
                    yield piece

    async def create_batch(
        self,
        jobs: Iterable[BatchLine] | AsyncIterable[BatchLine],
        /,
        *,
        on_rejected: OnRejected | None = None,
        **fields: Any,
    ) -> BatchStatus:
        """Submit jobs as one batch: with one state, counts, and one webhook at its end.

        Works through `jobs` in constant memory, waits while a queue is full, and returns when all
        are submitted. Called again with the same `idempotency_key` after any interruption, it
        continues the same batch, and submits no line twice.

        Args:
            jobs: `GenerationJob` values, mappings (which may have a `custom_id`), or lines of
                a bulk file, from an asynchronous iterable or another one.
            on_rejected: called with the index and the error of each rejected job, which counts as
                failed. None fails the batch at the first, and cancels the jobs submitted so far.
            **fields: the fields of a `BatchRequest`: `webhook`, `webhook_events_filter`,
                `webhook_secret`, `metadata`, `ttl_s`, `idempotency_key`.

        Raises:
            JobRejected: a field or a job is invalid, or the batch was cancelled meanwhile.
            IdempotencyConflict: the key stands for another batch.
            BrokerUnavailable: the broker does not respond; with an `idempotency_key` the same call
                continues the batch.
        """
        request = parse_batch(fields)
        lines = as_async(jobs)
        with broker_errors(self._url):
            return await async_batch_verbs.create_batch(
                self._store, self.settings, lines, request, on_rejected
            )

    async def batch(self, batch_id: str) -> BatchStatus:
        """Return the status of a batch.

        Raises:
            UnknownBatch: the batch does not exist.
            BrokerUnavailable: the broker does not respond.
        """
        with broker_errors(self._url):
            return await async_batch_verbs.status_of(self._store, batch_id)

    async def batches(self, limit: int = 100) -> list[BatchStatus]:
        """Return the newest batches, newest first.

        Raises:
            BrokerUnavailable: the broker does not respond.
        """
        with broker_errors(self._url):
            return await async_batch_verbs.newest_batches(self._store, limit)

    async def cancel_batch(self, batch_id: str) -> BatchStatus:
        """Cancel the jobs of a batch that have not ended; running ones stop at a checkpoint.

        Returns:
            Its new status: `cancelling` until the running jobs have stopped, or the state in
            which it had already ended.

        Raises:
            UnknownBatch: the batch does not exist.
            BrokerUnavailable: the broker does not respond.
        """
        with broker_errors(self._url):
            return await async_batch_verbs.cancel_batch(self._store, batch_id)

    async def batch_results(
        self, batch_id: str, *, timeout_s: float | None = None
    ) -> AsyncIterator[BatchEntry]:
        """Yield the lines of a batch in the order of the input, waiting for the end of each.

        Begins when all lines are submitted, and works in constant memory. Lines that were rejected
        when the batch was created have no job and are left out.

        Args:
            batch_id: the batch.
            timeout_s: how long to wait for all of them together; None waits as long as it takes.

        Raises:
            ResultTimeout: some have not ended; they continue.
            UnknownBatch: the batch does not exist.
            BrokerUnavailable: the broker has not responded for half a minute.
        """
        results = async_batch_verbs.batch_results(self._store, batch_id, timeout_s)
        with broker_errors(self._url):
            async with contextlib.aclosing(results) as entries:
                async for entry in entries:
                    yield entry

    async def _send(self, group: JobGroup) -> AsyncIterator[AsyncJob]:
        pause_s: float | None = 0.0
        while pause_s is not None:
            await asyncio.sleep(pause_s)
            with broker_errors(self._url):
                replies = await self._store.run_all(group.calls())
            pause_s = group.note(replies)
        for job_id in group.take_ids():
            yield AsyncJob(self, job_id)
        group.check()
