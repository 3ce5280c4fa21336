"""The history of a job's attempts: when each claim began and ended, with which worker, and why."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any

from batchmill.producer.moments import moment

#: The last millisecond that Python's dates have. Only a forged record has larger numbers.
_MAX_NUMBER = 253_402_300_799_999


class AttemptCause(StrEnum):
    """Why an attempt ended. A later version may write others, so `Attempt.cause` is a text."""

    COMPLETED = "completed"
    #: With an error, whose code is in `Attempt.code`.
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    #: The worker stopped in an orderly way.
    DRAIN = "drain"
    #: The engine died before it had the job.
    NOT_STARTED = "not_started"
    #: Another worker had room for it.
    MOVED = "moved"
    #: Its time slice was over, and other jobs waited.
    SLICED = "sliced"
    #: The engine process died while it had the job.
    ENGINE_DEATH = "engine_death"
    #: The engine's loop stood still while it had the job, so that the worker killed it.
    ENGINE_STALL = "engine_stall"
    #: The worker's process was gone, or cut off from Redis.
    WORKER_LOST = "worker_lost"
    #: The worker was frozen, or cut off without a sign, and its lease ran out.
    LEASE_EXPIRED = "lease_expired"


@dataclass(frozen=True, slots=True)
class Attempt:
    """One claim of a job. Times are milliseconds of unix time on Redis' clock.

    Without `_ms`, a time is a datetime in UTC.

    Attributes:
        attempt: number of the claim, from 1; None if another client has overwritten it.
        worker: the worker that claimed the job.
        claimed_at_ms: when it did so.
        ended_at_ms: when the attempt ended; None while it runs.
        tokens_at_claim: output tokens that it continued from.
        tokens_at_end: output tokens that were stored at its end; None while it runs.
        cause: why it ended, see `AttemptCause`; None while it runs.
        code: code of the error, if it has failed.
    """

    attempt: int | None
    worker: str
    claimed_at_ms: int | None = None
    ended_at_ms: int | None = None
    tokens_at_claim: int | None = None
    tokens_at_end: int | None = None
    cause: str | None = None
    code: str | None = None

    @property
    def claimed_at(self) -> datetime | None:
        """When the worker claimed the job, in UTC."""
        return moment(self.claimed_at_ms)

    @property
    def ended_at(self) -> datetime | None:
        """When the attempt ended, in UTC; None while it runs."""
        return moment(self.ended_at_ms)


def read_history(text: bytes | None) -> tuple[Attempt, ...]:
    """Return the attempts in the `history` of a record or a dead letter, oldest first.

    Any client of Redis may have overwritten it. What cannot be read is left out.
    """
    try:
        items = json.loads((text or b"[]").decode(errors="replace"))
    except (ValueError, RecursionError):
        return ()
    if not isinstance(items, list):
        return ()
    return tuple(_attempt(item) for item in items if isinstance(item, dict))


def running_attempt(fields: Mapping[str, bytes | None]) -> Attempt:
    """Return the attempt that runs now, from the fields of its record."""
    return Attempt(
        attempt=_digits(fields.get("attempts")),
        worker=(fields.get("owner") or b"").decode(errors="replace"),
        claimed_at_ms=_digits(fields.get("claimed_at_ms")),
        tokens_at_claim=_digits(fields.get("claimed_tokens")),
    )


def num_left_out(history: Sequence[Attempt]) -> int:
    """Return how many attempts a history lacks between its first and its last one."""
    last = history[-1].attempt if history else None
    return max(0, (last or 0) - len(history))


def count_causes(history: Iterable[Attempt]) -> Counter[str]:
    """Return how many attempts ended for each cause; those that failed count as `failed:<code>`."""
    ended = (attempt for attempt in history if attempt.cause is not None)
    return Counter(f"{a.cause}:{a.code}" if a.code else str(a.cause) for a in ended)


def _attempt(item: Mapping[str, Any]) -> Attempt:
    return Attempt(
        attempt=_number(item, "attempt"),
        worker=_text(item, "worker") or "",
        claimed_at_ms=_number(item, "claimed_at_ms"),
        ended_at_ms=_number(item, "ended_at_ms"),
        tokens_at_claim=_number(item, "tokens_at_claim"),
        tokens_at_end=_number(item, "tokens_at_end"),
        cause=_text(item, "cause"),
        code=_text(item, "code"),
    )


def _number(item: Mapping[str, Any], name: str) -> int | None:
    value = item.get(name)
    return value if type(value) is int and 0 <= value <= _MAX_NUMBER else None


def _digits(value: bytes | None) -> int | None:
    if not value or not value.isdigit() or len(value) > len(str(_MAX_NUMBER)):
        return None
    return int(value) if int(value) <= _MAX_NUMBER else None


def _text(item: Mapping[str, Any], name: str) -> str | None:
    value = item.get(name)
    return value if isinstance(value, str) else None
