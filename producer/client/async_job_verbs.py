"""The asyncio client's verbs on jobs that are stored: those of `JobVerbs`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence

from batchmill.producer.protocol import calls
from batchmill.producer.protocol.replies import (
    CancelAnswer,
    CancelCounts,
    CancelStatus,
    ForgetCounts,
)
from batchmill.producer.results import JobStatus
from batchmill.producer.settings import ProducerSettings
from batchmill.producer.store import job_index
from batchmill.producer.store.async_job_store import AsyncJobStore
from batchmill.producer.store.job_index import (
    DEFAULT_PAGE_JOBS,
    MAX_PAGE_JOBS,
    JobPage,
    JobQuery,
    check_limit,
)
from batchmill.producer.store.outcomes import broker_errors, check_forgotten, check_retried, unknown
from batchmill.producer.store.read_ends import chunks
from batchmill.producer.store.read_progress import (
    MAX_READ_AT_ONCE,
    JobProgress,
    JobReading,
    ProgressSummary,
    add_higher_classes,
    job_progress,
    last_waiting,
    queue_depth_reads,
    queue_progress_read,
    read_progress,
    summarise,
)
from batchmill.producer.store.read_status import queue_status_read, read_status
from batchmill.producer.store.submission import queue_limits

from .batching import MAX_BATCH_JOBS
from .job_verbs import HasId, ids_of


class AsyncJobVerbs:
    """What `AsyncClient` does with jobs that are stored. Owns nothing."""

    settings: ProducerSettings
    _url: str

    @property
    def _store(self) -> AsyncJobStore:
        """The store, for the event loop that runs."""
        raise NotImplementedError

    async def status(self, job_id: str) -> JobStatus:
        """As `Client.status`."""
        with broker_errors(self._url):
            async with self._store.client.pipeline(transaction=True) as pipeline:
                queue_status_read(pipeline, job_id)
                status = read_status(job_id, *await pipeline.execute())
        if status is None:
            raise unknown(job_id)
        return status

    async def list(
        self,
        *,
        tag: str | None = None,
        tenant: str | None = None,
        state: str | None = None,
        limit: int = DEFAULT_PAGE_JOBS,
        cursor: str | None = None,
    ) -> JobPage:
        """As `Client.list`."""
        query = JobQuery.checked(tag, tenant, state, cursor)
        jobs: tuple[JobStatus, ...] = ()
        check_limit(limit)
        with broker_errors(self._url):
            while True:
                page = await self._store.run(job_index.list_jobs(query, limit - len(jobs)))
                jobs += page.jobs
                if len(jobs) == limit or not page.has_more:
                    return JobPage(jobs, page.next_cursor)
                query = query.after(page.next_cursor)

    async def iter_jobs(
        self, *, tag: str | None = None, tenant: str | None = None, state: str | None = None
    ) -> AsyncIterator[JobStatus]:
        """As `Client.iter_jobs`."""
        cursor = None
        while True:
            page = await self.list(
                tag=tag, tenant=tenant, state=state, limit=MAX_PAGE_JOBS, cursor=cursor
            )
            for status in page.jobs:
                yield status
            if not page.has_more:
                return
            cursor = page.next_cursor

    async def progress(self, job_id: str) -> JobProgress:
        """As `Client.progress`."""
        with broker_errors(self._url):
            readings = await self._read_progress([job_id])
            if not readings:
                raise unknown(job_id)
            positions = await self._positions(readings)
            return job_progress(
                readings[0], positions.get(job_id), await self._store.list_workers()
            )

    async def progress_many(self, jobs: Iterable[HasId | str]) -> ProgressSummary:
        """As `Client.progress_many`."""
        ids = ids_of(jobs)
        with broker_errors(self._url):
            readings = await self._read_progress(ids)
            positions = await self._positions(last_waiting(readings))
            return summarise(len(ids), readings, positions, await self._store.list_workers())

    async def _read_progress(self, job_ids: Sequence[str]) -> Sequence[JobReading]:
        readings: list[JobReading] = []
        for some in chunks(job_ids, MAX_READ_AT_ONCE):
            async with self._store.client.pipeline(transaction=False) as pipeline:
                for job_id in some:
                    queue_progress_read(pipeline, job_id)
                readings += read_progress(some, await pipeline.execute())
        return readings

    async def _positions(self, readings: Sequence[JobReading]) -> dict[str, int | None]:
        """Jobs before each of some, those of higher classes included."""
        own = await self._store.run_all([calls.position(reading.id) for reading in readings])
        async with self._store.client.pipeline(transaction=False) as pipeline:
            queue_depth_reads(pipeline, readings)
            return add_higher_classes(readings, own, await pipeline.execute())

    async def cancel(self, job_id: str) -> CancelAnswer:
        """As `Client.cancel`."""
        with broker_errors(self._url):
            answer = await self._store.run(calls.cancel(job_id))
        if answer.status is CancelStatus.UNKNOWN:
            raise unknown(job_id)
        return answer

    async def cancel_many(self, jobs: Iterable[HasId | str]) -> dict[str, CancelAnswer]:
        """As `Client.cancel_many`."""
        answers: dict[str, CancelAnswer] = {}
        with broker_errors(self._url):
            for some in chunks(ids_of(jobs), MAX_BATCH_JOBS):
                batch = [calls.cancel(job_id) for job_id in some]
                answers |= zip(some, await self._store.run_all(batch), strict=True)
        return answers

    async def cancel_where(
        self, *, tag: str | None = None, tenant: str | None = None
    ) -> CancelCounts:
        """As `Client.cancel_where`."""
        query = JobQuery.checked(tag, tenant)
        query.check_is_narrow("cancelled")
        total = CancelCounts()
        with broker_errors(self._url):
            while True:
                cursor, counts = await self._store.run(job_index.cancel_where(query))
                total = total.plus(counts)
                if cursor is None:
                    return total
                query = query.after(cursor)

    async def retry(self, job_id: str) -> int:
        """As `Client.retry`."""
        with broker_errors(self._url):
            answer = await self._store.run(calls.retry(job_id, queue_limits(self.settings)))
        return check_retried(job_id, answer)

    async def forget(self, job_id: str) -> None:
        """As `Client.forget`."""
        with broker_errors(self._url):
            answer = await self._store.run(calls.forget(job_id))
        check_forgotten(job_id, answer)

    async def forget_where(
        self, *, tag: str | None = None, tenant: str | None = None
    ) -> ForgetCounts:
        """As `Client.forget_where`."""
        query = JobQuery.checked(tag, tenant)
        query.check_is_narrow("forgotten")
        total = ForgetCounts()
        with broker_errors(self._url):
            while True:
                cursor, counts = await self._store.run(job_index.forget_where(query))
                total = total.plus(counts)
                if cursor is None:
                    return total
                query = query.after(cursor)
