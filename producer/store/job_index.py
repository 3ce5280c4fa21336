"""Finding stored jobs: `JobFilter`, `JobQuery`, `JobPage`, and their calls."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final, Self, TypedDict, Unpack

from batchmill.producer.errors import InvalidQuery
from batchmill.producer.job.field_types import check_tag
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls import index as index_calls
from batchmill.producer.protocol.calls.call import Argument, Call
from batchmill.producer.protocol.calls.index import IndexPage
from batchmill.producer.protocol.replies import CancelCounts, ForgetCounts, JobState
from batchmill.producer.results import JobStatus

from .job_status import STATUS_FIELDS, readable_status

MAX_PAGE_JOBS: Final = 1000
DEFAULT_PAGE_JOBS: Final = 100
#: Index entries that one call examines: Redis serves no other client meanwhile.
MAX_EXAMINED: Final = 1000
#: Jobs cancelled or forgotten per call; each takes two dozen writes.
MAX_ENDED_AT_ONCE: Final = 100
#: Year 9999, the last one of a datetime.
_MAX_TIME_S: Final = 253_402_300_800
_CURSOR = re.compile(r"([0-9]{1,16})\.([A-Za-z0-9_-]{1,128})")


class JobFilter(TypedDict, total=False):
    """Which jobs a verb is about. A job must match everything that is given."""

    #: Jobs with this tag.
    tag: str | None
    #: Jobs of this tenant.
    tenant: str | None
    #: Jobs in this state.
    state: str | None
    #: Jobs for this model, by its served name.
    model: str | None
    #: Jobs of this queue, such as `batchmill.demo.normal`.
    queue: str | None
    #: Jobs submitted at this time or later: a datetime with a zone, or seconds of unix time.
    since: datetime | float | None
    #: Jobs submitted before this time.
    until: datetime | float | None


@dataclass(frozen=True, slots=True)
class JobQuery:
    """Which jobs to find, and after which job to continue."""

    tag: str | None = None
    tenant: str | None = None
    state: JobState | None = None
    model: str | None = None
    queue: str | None = None
    #: Milliseconds of unix time; the second is exclusive.
    since_ms: int | None = None
    until_ms: int | None = None
    #: Only jobs that have not ended.
    unfinished: bool = False
    #: As `JobPage.next_cursor`; None begins with the newest job.
    cursor: str | None = None

    @classmethod
    def checked(
        cls,
        tag: str | None = None,
        tenant: str | None = None,
        state: str | None = None,
        cursor: str | None = None,
        *,
        model: str | None = None,
        queue: str | None = None,
        since: datetime | float | None = None,
        until: datetime | float | None = None,
    ) -> Self:
        """Return the query for a caller's values.

        Raises:
            InvalidQuery: a value is invalid.
        """
        if tag is not None:
            try:
                check_tag(tag)
            except ValueError as error:
                raise InvalidQuery(f"tag {tag!r}: {error}") from None
        if tenant is not None and not keys.is_tenant_name(tenant):
            raise InvalidQuery(
                f"tenant is {tenant!r}; a name has 1 to 64 letters, digits, _ . and -"
            )
        if cursor is not None and not _CURSOR.fullmatch(cursor):
            raise InvalidQuery(f"cursor is {cursor!r}; give the next_cursor of an earlier page")
        return cls(
            tag,
            tenant,
            None if state is None else _state(state),
            model=None if model is None else _model(model),
            queue=None if queue is None else _queue(queue),
            since_ms=None if since is None else _milliseconds("since", since),
            until_ms=None if until is None else _milliseconds("until", until),
            cursor=cursor,
        )

    @classmethod
    def narrow(cls, tag: str | None, tenant: str | None, verb: str) -> Self:
        """Return a query for jobs to change, which must not be all jobs at once.

        Raises:
            InvalidQuery: neither tag nor tenant is given, or one is invalid.
        """
        if tag is None and tenant is None:
            raise InvalidQuery(f"every job would be {verb}; give a tag, a tenant, or both")
        return cls.checked(tag, tenant)

    @classmethod
    def to_cancel(cls, **filters: Unpack[JobFilter]) -> Self:
        """Return a query for jobs to cancel, which must not be all jobs at once.

        Raises:
            InvalidQuery: no filter is given, one is invalid, or the state is that of an ended job.
        """
        query = cls.checked(**filters)
        if query == cls():
            raise InvalidQuery(
                "every job would be cancelled; give a tag, tenant, state, model or queue, or the "
                "time of submission (since, until)"
            )
        if query.state is not None and query.state.is_terminal:
            raise InvalidQuery(
                f"state is {query.state.value!r}, but such jobs have ended: cancel takes queued or "
                "in_progress"
            )
        # By tag or tenant, the ended jobs are counted as well; otherwise they would be all there
        # are.
        return replace(query, unfinished=query.tag is None and query.tenant is None)

    def after(self, cursor: str | None) -> Self:
        """Return the query of the next page."""
        return replace(self, cursor=cursor)

    @property
    def _is_settled_by_index(self) -> bool:
        """Whether every entry of the index matches, without reading its record."""
        if self.tenant == keys.DEFAULT_TENANT or self.model is not None or self.queue is not None:
            return False
        return sum(part is not None for part in (self.tag, self.tenant, self.state)) <= 1

    def num_examined(self, limit: int) -> int:
        """Return how many index entries to examine for that many jobs."""
        return limit if self._is_settled_by_index else MAX_EXAMINED

    def arguments(self) -> list[Argument]:
        """Return the query as arguments of the scripts: names and values."""
        args: list[Argument] = []
        if self.tag is not None:
            args += ("tag", self.tag)
        if self.tenant is not None:
            args += ("tenant", self.tenant)
        if self.state is not None:
            args += ("state", self.state.value)
        if self.model is not None:
            args += ("queue_prefix", keys.queue_prefix(self.model))
        if self.queue is not None:
            args += ("queue", self.queue)
        if self.since_ms is not None:
            args += ("since", self.since_ms)
        if self.until_ms is not None:
            args += ("until_ms", self.until_ms)
        if self.unfinished:
            args += ("unfinished", 1)
        match = _CURSOR.fullmatch(self.cursor or "")
        if match is not None:
            args += ("at", match[1], "id", match[2])
        return args


@dataclass(frozen=True, slots=True)
class JobPage:
    """A page of the jobs that a query found, newest first."""

    jobs: tuple[JobStatus, ...]
    #: Cursor of the next page; None if this is the last.
    next_cursor: str | None = None
    #: The cursor after each job of the page.
    cursors: tuple[str, ...] = ()

    @property
    def has_more(self) -> bool:
        """Whether there may be more jobs."""
        return self.next_cursor is not None


def check_limit(limit: int) -> int:
    """Return the limit of a page, if it is valid.

    Raises:
        InvalidQuery: it is out of range.
    """
    if not 1 <= limit <= MAX_PAGE_JOBS:
        raise InvalidQuery(
            f"limit is {limit}; a page has 1 to {MAX_PAGE_JOBS} jobs: continue with its next_cursor"
        )
    return limit


def list_jobs(query: JobQuery, limit: int) -> Call[JobPage]:
    """List one page. It may have fewer jobs than `limit` and still not be the last."""
    max_examined = query.num_examined(limit)
    call = index_calls.list_jobs(
        query.arguments(), STATUS_FIELDS, limit=limit, max_examined=max_examined
    )
    return call.then(_page)


def cancel_where(query: JobQuery) -> Call[tuple[str | None, CancelCounts]]:
    """Cancel one page of jobs; the call returns the cursor of the next page and the counts."""
    return index_calls.cancel_where(query.arguments(), MAX_ENDED_AT_ONCE)


def forget_where(query: JobQuery) -> Call[tuple[str | None, ForgetCounts]]:
    """Forget one page of jobs; the call returns the cursor of the next page and the counts."""
    return index_calls.forget_where(query.arguments(), MAX_ENDED_AT_ONCE)


def _page(found: IndexPage) -> JobPage:
    jobs, cursors = [], []
    for row in found.rows:
        status = readable_status(row.job_id, row.values, row.num_token_bytes)
        if status is not None:
            jobs.append(status)
            cursors.append(f"{row.at_ms}.{row.job_id}")
    return JobPage(tuple(jobs), found.next_cursor, tuple(cursors))


def merged_page(pages: Sequence[JobPage], limit: int) -> JobPage:
    """Return the newest jobs of full pages of all brokers, which began at the same cursor."""
    if len(pages) == 1:
        return pages[0]
    found = [
        (_place(cursor), cursor, job)
        for page in pages
        for cursor, job in zip(page.cursors, page.jobs, strict=True)
    ]
    newest = sorted(found, key=lambda entry: entry[0], reverse=True)[:limit]
    has_more = len(found) > limit or any(page.has_more for page in pages)
    cursors = tuple(cursor for _, cursor, _ in newest)
    return JobPage(
        tuple(job for _, _, job in newest), cursors[-1] if has_more and cursors else None, cursors
    )


def _place(cursor: str) -> tuple[int, str]:
    at_ms, _, job_id = cursor.partition(".")
    return int(at_ms), job_id


def _model(name: str) -> str:
    try:
        keys.queue_name(name, "normal")
    except ValueError as error:
        raise InvalidQuery(f"model {name!r}: {error}") from None
    return name


def _queue(name: str) -> str:
    try:
        return keys.check_queue(name)
    except ValueError as error:
        raise InvalidQuery(f"queue {name!r}: {error}") from None


def _milliseconds(name: str, moment: datetime | float) -> int:
    if isinstance(moment, datetime):
        if moment.tzinfo is None:
            raise InvalidQuery(
                f"{name} is {moment.isoformat()} without a time zone; give a datetime with one"
            )
        moment = moment.timestamp()
    if not 0 <= moment < _MAX_TIME_S:
        raise InvalidQuery(f"{name} is {moment}; it must be seconds of unix time, or a datetime")
    return math.ceil(moment * 1000)


def _state(name: str) -> JobState:
    try:
        return JobState(name)
    except ValueError:
        raise InvalidQuery(
            f"state is {name!r}; it must be one of {', '.join(state.value for state in JobState)}"
        ) from None
