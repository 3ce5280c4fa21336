# Generated from async_job_verbs.py by tests/structure/generate_sync.py: change that file.
"""The client's verbs on stored jobs: status, list, progress, cancel, retry, forget."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from batchmill.producer.protocol.calls import jobs as job_calls
from batchmill.producer.protocol.replies import (
    CancelAnswer,
    CancelCounts,
    CancelStatus,
    ForgetCounts,
)
from batchmill.producer.results import JobStatus
from batchmill.producer.settings import ProducerSettings
from batchmill.producer.store import job_index
from batchmill.producer.store.ended_jobs import chunks
from batchmill.producer.store.job_index import (
    DEFAULT_PAGE_JOBS,
    MAX_PAGE_JOBS,
    JobPage,
    JobQuery,
    check_limit,
)
from batchmill.producer.store.job_progress import (
    MAX_READINGS_AT_ONCE,
    JobProgress,
    JobReading,
    ProgressSummary,
    job_progress,
    last_waiting,
    progress_readings,
    queue_positions,
    summarise,
)
from batchmill.producer.store.job_status import job_status
from batchmill.producer.store.reply_errors import (
    broker_errors,
    check_forgotten,
    check_retried,
    unknown_job_error,
)
from batchmill.producer.store.store import Store
from batchmill.producer.store.submission import queue_limits

from .job_groups import MAX_GROUP_JOBS
from .job_ids import HasId, ids_of


class JobVerbs:
    """Verbs of `Client` on stored jobs. The client owns the store."""

    settings: ProducerSettings
    _url: str
    _store: Store

    def status(self, job_id: str) -> JobStatus:
        """Return the status of a job.

        Raises:
            UnknownJob: the job does not exist.
            BrokerUnavailable: the broker does not respond.
        """
        with broker_errors(self._url):
            status = self._store.read(job_status(job_id))
        if status is None:
            raise unknown_job_error(job_id)
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

        The order stays the same while jobs change, end and are retried. A job that is kept from the
        first page to the last, and matches throughout, is therefore listed exactly once.

        Args:
            tag: only jobs with this tag.
            tenant: only jobs of this tenant.
            state: only jobs in this state.
            limit: most jobs per page, up to 1000.
            cursor: `next_cursor` of the page before; None begins with the newest job.

        Raises:
            InvalidQuery: a value is invalid.
            BrokerUnavailable: the broker does not respond.
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
        """Return the progress of a job: tokens, place in the queue, speed, and estimated end.

        Raises:
            UnknownJob: the job does not exist.
            BrokerUnavailable: the broker does not respond.
        """
        with broker_errors(self._url):
            readings = self._store.read(progress_readings([job_id]))
            if not readings:
                raise unknown_job_error(job_id)
            positions = self._positions(readings)
            workers = self._store.list_workers()
        return job_progress(readings[0], positions.get(job_id), workers)

    def progress_many(self, jobs: Iterable[HasId | str]) -> ProgressSummary:
        """Return the progress of many jobs together, in few round trips.

        Raises:
            BrokerUnavailable: the broker does not respond.
        """
        ids = ids_of(jobs)
        readings: list[JobReading] = []
        with broker_errors(self._url):
            for some in chunks(ids, MAX_READINGS_AT_ONCE):
                readings += self._store.read(progress_readings(some))
            positions = self._positions(last_waiting(readings))
            workers = self._store.list_workers()
        return summarise(len(ids), readings, positions, workers)

    def _positions(self, readings: Sequence[JobReading]) -> dict[str, int | None]:
        """Return how many jobs come before each job, those of higher classes included."""
        own = self._store.run_all([job_calls.position(reading.id) for reading in readings])
        return self._store.read(queue_positions(readings, own))

    def cancel(self, job_id: str) -> CancelAnswer:
        """Cancel a job: at once if it waits, at its next checkpoint if it runs.

        Returns:
            Whether it is cancelled, is being cancelled, or had already ended.

        Raises:
            UnknownJob: the job does not exist.
            BrokerUnavailable: the broker does not respond.
        """
        with broker_errors(self._url):
            reply = self._store.run(job_calls.cancel(job_id))
        if reply.status is CancelStatus.UNKNOWN:
            raise unknown_job_error(job_id)
        return reply

    def cancel_many(self, jobs: Iterable[HasId | str]) -> dict[str, CancelAnswer]:
        """Cancel jobs in few round trips.

        Returns:
            As `cancel`, by job id; an unknown job has the status UNKNOWN.

        Raises:
            BrokerUnavailable: the broker does not respond; cancelling again does no harm.
        """
        replies: dict[str, CancelAnswer] = {}
        with broker_errors(self._url):
            for some in chunks(ids_of(jobs), MAX_GROUP_JOBS):
                calls = [job_calls.cancel(job_id) for job_id in some]
                replies |= zip(some, self._store.run_all(calls), strict=True)
        return replies

    def cancel_where(self, *, tag: str | None = None, tenant: str | None = None) -> CancelCounts:
        """Cancel all jobs with a tag, of a tenant, or both, page by page.

        Each cancellation checks the job's record for both, so no other job is ever cancelled.
        Jobs submitted meanwhile are not included.

        Raises:
            InvalidQuery: neither is given, or one is invalid.
            BrokerUnavailable: the broker does not respond; cancelling again does no harm.
        """
        query = JobQuery.narrow(tag, tenant, "cancelled")
        total = CancelCounts()
        with broker_errors(self._url):
            while True:
                cursor, counts = self._store.run(job_index.cancel_where(query))
                total = total.plus(counts)
                if cursor is None:
                    return total
                query = query.after(cursor)

    def retry(self, job_id: str) -> int:
        """Run a job that failed, was cancelled or expired again, under its own id.

        It resumes from its tokens if the model is still the same, and waits at the end of its
        queue. A deadline that has passed is dropped, and so is its dead letter. Its next end sends
        a webhook under a new id.

        Returns:
            The number of the run that has begun: 2 for the first retry.

        Raises:
            WrongState: it completed, or has not ended.
            QueueFull: a limit on waiting jobs is reached.
            UnknownJob: the job does not exist.
            BrokerUnavailable: the broker does not respond; the job may be retried or not.
        """
        with broker_errors(self._url):
            reply = self._store.run(job_calls.retry(job_id, queue_limits(self.settings)))
        return check_retried(job_id, reply)

    def forget(self, job_id: str) -> None:
        """Remove everything that is stored about a job that has ended, at once.

        That is its record with prompt and result, its tokens and text, its idempotency key, its
        webhook events, delivered or not, and its dead letters. Forgetting it again within an hour
        is not an error: the reply to the first call may have been lost.

        Raises:
            WrongState: it has not ended: cancel it first.
            UnknownJob: the job does not exist and was not forgotten in the last hour.
            BrokerUnavailable: the broker does not respond; forgetting again does no harm.
        """
        with broker_errors(self._url):
            reply = self._store.run(job_calls.forget(job_id))
        check_forgotten(job_id, reply)

    def forget_where(self, *, tag: str | None = None, tenant: str | None = None) -> ForgetCounts:
        """Forget all ended jobs with a tag, of a tenant, or both; the others are kept.

        Raises:
            InvalidQuery: neither is given, or one is invalid.
            BrokerUnavailable: the broker does not respond; forgetting again does no harm.
        """
        query = JobQuery.narrow(tag, tenant, "forgotten")
        total = ForgetCounts()
        with broker_errors(self._url):
            while True:
                cursor, counts = self._store.run(job_index.forget_where(query))
                total = total.plus(counts)
                if cursor is None:
                    return total
                query = query.after(cursor)
