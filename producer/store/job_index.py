"""Finding stored jobs by tag, tenant and state: `JobQuery`, `JobPage`, and their calls."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Final, Self

from batchmill.producer.errors import InvalidQuery
from batchmill.producer.job.document import check_tag
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls import index as index_calls
from batchmill.producer.protocol.calls.call import Argument, Call
from batchmill.producer.protocol.calls.index import IndexPage, IndexRow
from batchmill.producer.protocol.replies import CancelCounts, ForgetCounts, JobState
from batchmill.producer.results import JobStatus

from .job_status import STATUS_FIELDS, read_status

MAX_PAGE_JOBS: Final = 1000
DEFAULT_PAGE_JOBS: Final = 100
#: Index entries that one call examines: Redis serves no other client meanwhile.
MAX_EXAMINED: Final = 1000
#: Jobs cancelled or forgotten per call; each takes two dozen writes.
MAX_ENDED_AT_ONCE: Final = 100
_CURSOR = re.compile(r"([0-9]{1,16})\.([A-Za-z0-9_-]{1,128})")


@dataclass(frozen=True, slots=True)
class JobQuery:
    """Which jobs to find, and after which job to continue."""

    tag: str | None = None
    tenant: str | None = None
    state: JobState | None = None
    #: As `JobPage.next_cursor`; None begins with the newest job.
    cursor: str | None = None

    @classmethod
    def checked(
        cls,
        tag: str | None,
        tenant: str | None,
        state: str | None = None,
        cursor: str | None = None,
    ) -> Self:
        """Return the query for a caller's values.

        Raises:
            InvalidQuery: the tag, tenant, state or cursor is invalid.
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
        return cls(tag, tenant, None if state is None else _state(state), cursor)

    @classmethod
    def narrow(cls, tag: str | None, tenant: str | None, verb: str) -> Self:
        """Return a query for jobs to change, which must not be all jobs at once.

        Raises:
            InvalidQuery: neither tag nor tenant is given, or one is invalid.
        """
        if tag is None and tenant is None:
            raise InvalidQuery(f"every job would be {verb}; give a tag, a tenant, or both")
        return cls.checked(tag, tenant)

    def after(self, cursor: str | None) -> Self:
        """Return the query of the next page."""
        return replace(self, cursor=cursor)

    @property
    def _is_settled_by_index(self) -> bool:
        """Whether every entry of the index matches, without reading its record."""
        if self.tenant == keys.DEFAULT_TENANT:
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
    statuses = map(_readable_status, found.rows)
    return JobPage(tuple(status for status in statuses if status), found.next_cursor)


def _readable_status(row: IndexRow) -> JobStatus | None:
    """Return the status of a row; None if batchmill did not write its record."""
    try:
        return read_status(row.job_id, row.values, row.num_token_bytes)
    except (KeyError, ValueError):
        return None


def _state(name: str) -> JobState:
    try:
        return JobState(name)
    except ValueError:
        raise InvalidQuery(
            f"state is {name!r}; it must be one of {', '.join(state.value for state in JobState)}"
        ) from None
