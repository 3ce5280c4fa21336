# Generated from async_job_verbs.py by tests/structure/generate_sync.py: change that file.
"""The client's verbs on stored jobs: status, list, progress, cancel, retry, forget."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import reduce
from typing import TypeVar, Unpack

from batchmill.producer.progress import JobProgress, ProgressSummary, joined_summary
from batchmill.producer.protocol.calls import jobs as job_calls
from batchmill.producer.protocol.calls.call import Call
from batchmill.producer.protocol.replies import (
    CancelAnswer,
    CancelCounts,
    CancelStatus,
    ForgetCounts,
)
from batchmill.producer.results import JobStatus
from batchmill.producer.settings import ProducerSettings
from batchmill.producer.store import job_index
from batchmill.producer.store.broker_errors import broker_errors
from batchmill.producer.store.ended_jobs import chunks
from batchmill.producer.store.job_index import (
    DEFAULT_PAGE_JOBS,
    MAX_PAGE_JOBS,
    JobFilter,
    JobPage,
    JobQuery,
    check_limit,
    merged_page,
)
from batchmill.producer.store.job_status import job_status
from batchmill.producer.store.reply_errors import check_forgotten, check_retried, unknown_job_error
from batchmill.producer.store.shards import Shards
from batchmill.producer.store.store import Store
from batchmill.producer.store.submission import queue_limits
from batchmill.producer.watch.progress import progress_of, progress_of_many

from .job_groups import MAX_GROUP_JOBS
from .job_ids import HasId, ids_of

Counts = TypeVar("Counts", CancelCounts, ForgetCounts)


class JobVerbs:
    """Verbs of `Client` on stored jobs. The client owns the stores."""

    settings: ProducerSettings
    _url: str
    _shards: Shards

    def status(self, job_id: str) -> JobStatus:
        """Return the status of a job.

        Raises:
            UnknownJob: the job does not exist.
            BrokerUnavailable: the broker does not respond.
        """
        with broker_errors(self._url):
            status = (self._shards.of_job(job_id)).read(job_status(job_id))
        if status is None:
            raise unknown_job_error(job_id)
        return status

    def list(
        self,
        *,
        limit: int = DEFAULT_PAGE_JOBS,
        cursor: str | None = None,
        **filters: Unpack[JobFilter],
    ) -> JobPage:
        """Return a page of jobs, newest first: in the order in which they were submitted.

        The order stays the same while jobs change, end and are retried. A job that is kept from the
        first page to the last, and matches throughout, is therefore listed exactly once.

        Args:
            limit: most jobs per page, up to 1000.
            cursor: `next_cursor` of the page before; None begins with the newest job.
            **filters: the fields of a `JobFilter`: `tag`, `tenant`, `state`, `model`, `queue`,
                `since`, `until`. Without any, all jobs are listed.

        Raises:
            InvalidQuery: a value is invalid.
            BrokerUnavailable: the broker does not respond.
        """
        query = JobQuery.checked(**filters, cursor=cursor)
        check_limit(limit)
        with broker_errors(self._url):
            pages = [page_of(store, query, limit) for store in self._shards.every()]
        return merged_page(pages, limit)

    def iter_jobs(self, **filters: Unpack[JobFilter]) -> Iterator[JobStatus]:
        """Yield all jobs that `list` would return, page by page, in constant memory.

        Args:
            **filters: as `list`.

        Raises:
            InvalidQuery, BrokerUnavailable: as `list`.
        """
        cursor = None
        while True:
            page = self.list(limit=MAX_PAGE_JOBS, cursor=cursor, **filters)
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
            return progress_of(self._shards.of_job(job_id), job_id)

    def progress_many(self, jobs: Iterable[HasId | str]) -> ProgressSummary:
        """Return the progress of many jobs together, in few round trips.

        Raises:
            BrokerUnavailable: the broker does not respond.
        """
        with broker_errors(self._url):
            stores = self._shards.of_jobs(ids_of(jobs))
            parts = [progress_of_many(store, some) for store, some in stores]
        return parts[0] if len(parts) == 1 else joined_summary(parts)

    def cancel(self, job_id: str) -> CancelAnswer:
        """Cancel a job: at once if it waits, at its next checkpoint if it runs.

        Returns:
            Whether it is cancelled, is being cancelled, or had already ended.

        Raises:
            UnknownJob: the job does not exist.
            BrokerUnavailable: the broker does not respond.
        """
        with broker_errors(self._url):
            reply = (self._shards.of_job(job_id)).run(job_calls.cancel(job_id))
        if reply.status is CancelStatus.UNKNOWN:
            raise unknown_job_error(job_id)
        return reply

    def cancel_many(self, jobs: Iterable[HasId | str]) -> dict[str, CancelAnswer]:
        """Cancel jobs in few round trips.

        Returns:
            As `cancel`, by job id; an unknown job has the status UNKNOWN.

        Raises:
            BrokerUnavailable: as `cancel_where`.
        """
        replies: dict[str, CancelAnswer] = {}
        with broker_errors(self._url):
            for some in chunks(ids_of(jobs), MAX_GROUP_JOBS):
                answers = self._shards.run_each(some, job_calls.cancel)
                replies |= zip(some, answers, strict=True)
        return replies

    def cancel_where(self, **filters: Unpack[JobFilter]) -> CancelCounts:
        """Cancel all jobs that match every filter, page by page.

        Each cancellation checks the job's record for them, so no other job is ever cancelled.
        Jobs submitted meanwhile are not included.

        Args:
            **filters: the fields of a `JobFilter`, at least one; a `state` must be `queued` or
                `in_progress`.

        Raises:
            InvalidQuery: no filter is given, or one is invalid.
            BrokerUnavailable: the broker does not respond, or some shards (`shards`), and the jobs
                of the others are cancelled; cancelling again does no harm.
        """
        query = JobQuery.to_cancel(**filters)
        with broker_errors(self._url):
            counts = self._shards.do_everywhere(
                lambda store: _run_pages(store, query, job_index.cancel_where, CancelCounts())
            )
        return reduce(CancelCounts.plus, counts)

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
            store = self._shards.of_job(job_id)
            reply = store.run_confirmed(job_calls.retry(job_id, queue_limits(self.settings)))
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
            reply = (self._shards.of_job(job_id)).run(job_calls.forget(job_id))
        check_forgotten(job_id, reply)

    def forget_where(self, *, tag: str | None = None, tenant: str | None = None) -> ForgetCounts:
        """Forget all ended jobs with a tag, of a tenant, or both; the others are kept.

        Raises:
            InvalidQuery: neither is given, or one is invalid.
            BrokerUnavailable: the broker does not respond; forgetting again does no harm.
        """
        query = JobQuery.narrow(tag, tenant, "forgotten")
        with broker_errors(self._url):
            counts = self._shards.do_everywhere(
                lambda store: _run_pages(store, query, job_index.forget_where, ForgetCounts())
            )
        return reduce(ForgetCounts.plus, counts)


def page_of(store: Store, query: JobQuery, limit: int) -> JobPage:
    """Return a full page of one broker; a single call may find fewer jobs."""
    jobs: tuple[JobStatus, ...] = ()
    cursors: tuple[str, ...] = ()
    while True:
        page = store.run(job_index.list_jobs(query, limit - len(jobs)))
        jobs, cursors = jobs + page.jobs, cursors + page.cursors
        if len(jobs) == limit or not page.has_more:
            return JobPage(jobs, page.next_cursor, cursors)
        query = query.after(page.next_cursor)


def _run_pages(
    store: Store,
    query: JobQuery,
    make: Callable[[JobQuery], Call[tuple[str | None, Counts]]],
    total: Counts,
) -> Counts:
    """Run a call on all pages of one broker, and return the sum of its counts."""
    rest: JobQuery | None = query
    while rest is not None:
        cursor, counts = store.run(make(rest))
        total = total.plus(counts)
        rest = None if cursor is None else rest.after(cursor)
    return total
