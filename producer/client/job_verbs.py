"""The client's verbs on jobs that are stored: list, measure, cancel, retry, forget."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

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
from batchmill.producer.store.job_index import (
    DEFAULT_PAGE_JOBS,
    MAX_PAGE_JOBS,
    JobPage,
    JobQuery,
    check_limit,
)
from batchmill.producer.store.job_store import JobStore
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


class HasId(Protocol):
    """A job's handle."""

    @property
    def id(self) -> str:
        """The job."""


def ids_of(jobs: Iterable[HasId | str]) -> list[str]:
    """Return the ids of handles or ids, each once."""
    return list(dict.fromkeys(job if isinstance(job, str) else job.id for job in jobs))


class JobVerbs:
    """What `Client` does with jobs that are stored. Owns nothing: the client opens and closes."""

    settings: ProducerSettings
    _url: str
    _store: JobStore

    def status(self, job_id: str) -> JobStatus:
        """Return where a job is.

        Raises:
            UnknownJob: there is none of this id.
            BrokerUnavailable: no answer from the broker.
        """
        with broker_errors(self._url), self._store.client.pipeline(transaction=True) as pipeline:
            queue_status_read(pipeline, job_id)
            status = read_status(job_id, *pipeline.execute())
        if status is None:
            raise unknown(job_id)
        return status

    def list(
        self,
        *,
        tag: str | None = None,
        tenant: str | None = None,
        state: str | None = None,
        limit: int = DEFAULT_PAGE_JOBS,
        cursor: str | None = None,
    ) -> JobPage:
        """Return a page of jobs, newest first: in the order in which they were submitted.

        The order stays while jobs change, end and are retried, so one that is kept from the first
        page to the last is met exactly once, wherever it matches throughout.

        Args:
            tag: only jobs with this tag.
            tenant: only jobs of this tenant.
            state: only jobs in this state.
            limit: most jobs of the page, up to 1000.
            cursor: `next_cursor` of the page before; None begins with the newest job.

        Raises:
            InvalidQuery: a value cannot be.
            BrokerUnavailable: no answer from the broker.
        """
        query = JobQuery.checked(tag, tenant, state, cursor)
        jobs: tuple[JobStatus, ...] = ()
        check_limit(limit)
        with broker_errors(self._url):
            while True:
                page = self._store.run(job_index.list_jobs(query, limit - len(jobs)))
                jobs += page.jobs
                if len(jobs) == limit or not page.has_more:
                    return JobPage(jobs, page.next_cursor)
                query = query.after(page.next_cursor)

    def iter_jobs(
        self, *, tag: str | None = None, tenant: str | None = None, state: str | None = None
    ) -> Iterator[JobStatus]:
        """Yield all jobs that `list` would return, page by page, in constant memory.

        Raises:
            InvalidQuery, BrokerUnavailable: as `list`.
        """
        cursor = None
        while True:
            page = self.list(
                tag=tag, tenant=tenant, state=state, limit=MAX_PAGE_JOBS, cursor=cursor
            )
            yield from page.jobs
            if not page.has_more:
                return
            cursor = page.next_cursor

    def progress(self, job_id: str) -> JobProgress:
        """Return how far a job is: tokens, place in the queue, speed, and an estimate of its end.

        Raises:
            UnknownJob: there is none of this id.
            BrokerUnavailable: no answer from the broker.
        """
        with broker_errors(self._url):
            readings = self._read_progress([job_id])
            if not readings:
                raise unknown(job_id)
            positions = self._positions(readings)
            return job_progress(readings[0], positions.get(job_id), self._store.list_workers())

    def progress_many(self, jobs: Iterable[HasId | str]) -> ProgressSummary:
        """Return how far many jobs are together, in few round trips.

        Raises:
            BrokerUnavailable: no answer from the broker.
        """
        ids = ids_of(jobs)
        with broker_errors(self._url):
            readings = self._read_progress(ids)
            positions = self._positions(last_waiting(readings))
            return summarise(len(ids), readings, positions, self._store.list_workers())

    def _read_progress(self, job_ids: Sequence[str]) -> Sequence[JobReading]:
        readings: list[JobReading] = []
        for some in chunks(job_ids, MAX_READ_AT_ONCE):
            with self._store.client.pipeline(transaction=False) as pipeline:
                for job_id in some:
                    queue_progress_read(pipeline, job_id)
                readings += read_progress(some, pipeline.execute())
        return readings

    def _positions(self, readings: Sequence[JobReading]) -> dict[str, int | None]:
        """Jobs before each of some, those of higher classes included."""
        own = self._store.run_all([calls.position(reading.id) for reading in readings])
        with self._store.client.pipeline(transaction=False) as pipeline:
            queue_depth_reads(pipeline, readings)
            return add_higher_classes(readings, own, pipeline.execute())

    def cancel(self, job_id: str) -> CancelAnswer:
        """Cancel a job: at once where it waits, at its next checkpoint where it runs.

        Returns:
            What was done; nothing where the job had ended already.

        Raises:
            UnknownJob: there is none of this id.
            BrokerUnavailable: no answer from the broker.
        """
        with broker_errors(self._url):
            answer = self._store.cancel(job_id)
        if answer.status is CancelStatus.UNKNOWN:
            raise unknown(job_id)
        return answer

    def cancel_many(self, jobs: Iterable[HasId | str]) -> dict[str, CancelAnswer]:
        """Cancel jobs in few round trips.

        Returns:
            What was done, by job id; an unknown job has the status UNKNOWN.

        Raises:
            BrokerUnavailable: no answer from the broker; cancelling again does no harm.
        """
        answers: dict[str, CancelAnswer] = {}
        with broker_errors(self._url):
            for some in chunks(ids_of(jobs), MAX_BATCH_JOBS):
                batch = [calls.cancel(job_id) for job_id in some]
                answers |= zip(some, self._store.run_all(batch), strict=True)
        return answers

    def cancel_where(self, *, tag: str | None = None, tenant: str | None = None) -> CancelCounts:
        """Cancel all jobs with a tag, of a tenant, or both, in batches.

        Each job's record is asked for both in the step that cancels it, so nothing else is ever
        cancelled. Jobs submitted meanwhile are not among them.

        Raises:
            InvalidQuery: neither is given, or there can be none like it.
            BrokerUnavailable: no answer from the broker; cancelling again does no harm.
        """
        query = JobQuery.checked(tag, tenant)
        query.check_is_narrow("cancelled")
        total = CancelCounts()
        with broker_errors(self._url):
            while True:
                cursor, counts = self._store.run(job_index.cancel_where(query))
                total = total.plus(counts)
                if cursor is None:
                    return total
                query = query.after(cursor)

    def retry(self, job_id: str) -> int:
        """Run a job again that failed, was cancelled or expired, under its own id.

        It goes on from the tokens it has, where the model is still the same, and waits at the end
        of its queue. A deadline that has passed is dropped; its dead letter goes; its next end
        sends a webhook under an id of its own.

        Returns:
            The number of the run that has begun: 2 for the first retry.

        Raises:
            WrongState: it completed, or has not ended.
            QueueFull: a limit on what waits is reached.
            UnknownJob: there is none of this id.
            BrokerUnavailable: no answer from the broker; it may be retried or not.
        """
        with broker_errors(self._url):
            answer = self._store.run(calls.retry(job_id, queue_limits(self.settings)))
        return check_retried(job_id, answer)

    def forget(self, job_id: str) -> None:
        """Remove all that is kept of a job that has ended, at once.

        That is its record with prompt and result, its tokens and text, its idempotency key, its
        webhook events, delivered or not, and its dead letters. Doing so again within an hour is no
        error: the answer of the first call may have been lost.

        Raises:
            WrongState: it has not ended: cancel it first.
            UnknownJob: there is none of this id, and none was forgotten in the last hour.
            BrokerUnavailable: no answer from the broker; forgetting again does no harm.
        """
        with broker_errors(self._url):
            answer = self._store.run(calls.forget(job_id))
        check_forgotten(job_id, answer)

    def forget_where(self, *, tag: str | None = None, tenant: str | None = None) -> ForgetCounts:
        """Forget all ended jobs with a tag, of a tenant, or both; the others are kept.

        Raises:
            InvalidQuery: neither is given, or there can be none like it.
            BrokerUnavailable: no answer from the broker; forgetting again does no harm.
        """
        query = JobQuery.checked(tag, tenant)
        query.check_is_narrow("forgotten")
        total = ForgetCounts()
        with broker_errors(self._url):
            while True:
                cursor, counts = self._store.run(job_index.forget_where(query))
                total = total.plus(counts)
                if cursor is None:
                    return total
                query = query.after(cursor)
