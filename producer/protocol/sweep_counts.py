"""What the scripts that keep the store in order reply: how much they found and mended."""

from __future__ import annotations

from dataclasses import dataclass, field, replace


@dataclass(frozen=True, slots=True)
class LostSessions:
    """Reply of `end_lost_sessions`."""

    #: Jobs of lost sessions that were put back, or ended.
    num_jobs: int
    #: Waiting jobs that were announced again.
    num_reannounced: int
    #: Lost sessions of which no job is left.
    sessions: tuple[str, ...]
    #: Documents, plain Celery tasks and webhook events that they had taken and that are due again.
    num_released: int = 0


@dataclass(frozen=True, slots=True)
class SweepCounts:
    """Reply of `sweep`: how many jobs, batches and records it repaired, by kind."""

    #: Jobs with a lost lease that were put back into their queues.
    requeued: int
    #: Jobs with a lost lease that failed because they had crashed too often.
    dead: int
    #: Jobs that were cancelled: with a lost lease, or of a batch that is being cancelled.
    cancelled: int
    #: Jobs whose deadline had passed.
    expired: int
    #: Waiting jobs whose announcement was lost.
    reannounced: int
    #: Records that Redis has deleted, and whose index entries are removed now.
    unindexed: int = 0
    #: Lapsed leases that were extended, because no holder could renew them.
    extended: int = 0
    #: Entries of backlogs without a usable record that were removed.
    dropped: int = 0
    #: Dead letters that were dropped because there were more than allowed.
    letters_dropped: int = 0
    #: Time by the clock of Redis during the sweep, milliseconds.
    redis_ms: int = field(default=0, compare=False)
    #: Keys that another program had written with another type, and that were deleted.
    foreign_keys: tuple[str, ...] = ()
    #: Jobs visited to rebuild the usage counters.
    recounted: int = 0

    def with_repair(self, repair: RepairCounts) -> SweepCounts:
        """Return the sum of these counts and of those of the repair that followed."""
        return replace(
            self,
            expired=self.expired + repair.expired,
            recounted=repair.recounted,
            dropped=self.dropped + repair.dropped,
            foreign_keys=self.foreign_keys + repair.foreign_keys,
        )


@dataclass(frozen=True, slots=True)
class RepairCounts:
    """Reply of `repair_store`."""

    #: Jobs that expired because no worker serves their queue.
    expired: int
    #: Jobs visited to rebuild the usage counters.
    recounted: int
    #: Entries of backlogs without a usable record that were removed.
    dropped: int
    #: Keys that another program had written with another type, and that were deleted.
    foreign_keys: tuple[str, ...] = ()
