"""How many: what the scripts that touch many jobs did, and the store at a glance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class CancelCounts:
    """What `cancel_where` did."""

    #: They waited.
    cancelled: int = 0
    #: They run: their workers stop them at the next checkpoint.
    cancelling: int = 0
    #: They had ended before.
    already_terminal: int = 0

    def plus(self, other: CancelCounts) -> CancelCounts:
        """Return both together."""
        return CancelCounts(
            self.cancelled + other.cancelled,
            self.cancelling + other.cancelling,
            self.already_terminal + other.already_terminal,
        )


@dataclass(frozen=True, slots=True)
class ForgetCounts:
    """What `forget_where` did."""

    forgotten: int = 0
    #: They have not ended, and are kept.
    active: int = 0

    def plus(self, other: ForgetCounts) -> ForgetCounts:
        """Return both together."""
        return ForgetCounts(self.forgotten + other.forgotten, self.active + other.active)


@dataclass(frozen=True, slots=True)
class SweepCounts:
    """What a sweep did."""

    #: Lost leases put back into their queues.
    requeued: int
    #: Lost leases of jobs that were given up.
    dead: int
    #: Lost leases of jobs that had been cancelled.
    cancelled: int
    #: Jobs whose deadline had passed.
    expired: int
    #: Waiting jobs whose announcement was lost.
    reannounced: int
    #: Records that Redis has deleted and whose index entries are out now.
    unindexed: int = 0
    #: Jobs gone through to count anew what waits.
    recounted: int = 0


@dataclass(frozen=True, slots=True)
class QueueDepth:
    """One queue."""

    queue: str
    #: Jobs waiting, by our records; delayed ones too.
    queued: int
    #: Messages in the Celery list: a small window of the jobs that wait, never all of them.
    announcements: int


@dataclass(frozen=True, slots=True)
class Counts:
    """The store at a glance."""

    queued: int
    #: Of these, jobs whose delay is not over.
    scheduled: int
    in_progress: int
    #: Webhook events waiting for delivery.
    outbox: int
    dead_letters: int
    #: Documents in the inbox that are no jobs yet.
    inbox: int
    #: Monotone totals since the store was created: `submitted`, each terminal state,
    #: `webhook_delivered` …
    totals: Mapping[str, int]
