"""Calls over the index of jobs: list, cancel and forget those that match filters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from batchmill.producer.protocol.replies import CancelCounts, ForgetCounts

from .call import Argument, Call


@dataclass(frozen=True, slots=True)
class IndexRow:
    """A job of a page: the values of the fields asked for, and the length of its tokens."""

    job_id: str
    values: Sequence[bytes | None]
    #: Time of submission, milliseconds: with the id, its place in the order.
    at_ms: int
    num_token_bytes: int


@dataclass(frozen=True, slots=True)
class IndexPage:
    """A page of jobs, newest first."""

    rows: Sequence[IndexRow]
    #: Cursor of the next page; None at the end.
    next_cursor: str | None


def list_jobs(
    filters: Sequence[Argument], fields: Sequence[str], *, limit: int, max_examined: int
) -> Call[IndexPage]:
    """Read one page. It may have fewer jobs than `limit` and still not be the last."""

    def parse(reply: list[Any]) -> IndexPage:
        cursor, rows = reply
        return IndexPage(
            [_row(row) for row in rows],
            _cursor(cursor),
        )

    return Call("list", (limit, max_examined, len(fields), *fields, *filters), parse)


def cancel_where(filters: Sequence[Argument], limit: int) -> Call[tuple[str | None, CancelCounts]]:
    """Cancel one page of jobs; the reply is the cursor of the next page and the counts."""
    return Call(
        "cancel_where",
        (limit, *filters),
        lambda reply: (_cursor(reply[0]), CancelCounts(*reply[1:])),
    )


def forget_where(filters: Sequence[Argument], limit: int) -> Call[tuple[str | None, ForgetCounts]]:
    """Forget one page of jobs; the reply is the cursor of the next page and the counts."""
    return Call(
        "forget_where",
        (limit, *filters),
        lambda reply: (_cursor(reply[0]), ForgetCounts(*reply[1:])),
    )


def _row(row: Sequence[Any]) -> IndexRow:
    job_id, *values, at_ms, num_token_bytes = row
    return IndexRow(job_id.decode(errors="replace"), values, int(at_ms), num_token_bytes)


def _cursor(reply: list[bytes]) -> str | None:
    return ".".join(part.decode(errors="replace") for part in reply) if reply else None
