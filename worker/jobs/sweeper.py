"""The sweep: puts back the jobs of dead workers and lost announcements, and ends late jobs."""

from __future__ import annotations

import time

import structlog

from batchmill.producer.protocol.sweep_counts import SweepCounts
from batchmill.producer.store.job_store import JobStore
from batchmill.worker.settings import WorkerSettings

from .clock_watch import ClockWatch

_log = structlog.stdlib.get_logger("batchmill.sweeper")
#: Jobs of each kind per call. Redis serves no other client during the call.
_LIMIT = 500
#: Between two walks over all unfinished jobs, which repair what deleting keys by hand has torn
#: apart. All workers together walk one page of `_LIMIT` jobs per second.
_REPAIR_INTERVAL_MS = 10_000
#: After an outage of Redis, lapsed leases are extended by a lease, and by no less than this: the
#: holders come back within their longest backoff and a socket timeout.
_MIN_EXTENSION_S = 5.0
#: Names of keys in one line of the log.
_MAX_LOGGED = 20


def announce_delayed_jobs(store: JobStore) -> None:
    """Announce delayed jobs that are due: a small call, so that they wait under a second."""
    while store.announce_due(limit=_LIMIT) == _LIMIT:
        pass


class Sweeper:
    """Sweeps as the settings of a worker say. Any number of workers may sweep at once."""

    def __init__(self, store: JobStore, settings: WorkerSettings) -> None:
        """Bind to the store.

        Args:
            store: the job store.
            settings: of the worker.
        """
        self._store = store
        self._settings = settings
        self._clock_watch = ClockWatch()

    def sweep(self) -> None:
        """Sweep until nothing is left to do.

        Raises:
            redis.exceptions.RedisError: Redis did not reply; the next sweep makes up for it.
        """
        settings = self._settings
        is_done = False
        while not is_done:
            sent_at = time.monotonic()
            counts = self._store.sweep(
                limit=_LIMIT,
                reannounce_grace_ms=int(settings.reannounce_grace_s * 1000),
                sweep_interval_ms=int(settings.sweep_interval_s * 1000),
                extension_ms=int(max(settings.lease_s, _MIN_EXTENSION_S) * 1000),
                repair_interval_ms=_REPAIR_INTERVAL_MS,
                max_letters=settings.max_dead_letters,
                usage_days=settings.usage_days,
                unserved_ttl_ms=settings.unserved_ttl_s and settings.unserved_ttl_s * 1000,
            )
            self._clock_watch.observe(counts.redis_ms, sent_at)
            _log_counts(counts)
            is_done = _largest(counts) < _LIMIT


def _log_counts(counts: SweepCounts) -> None:
    numbers = _ended_or_moved(counts)
    if counts.extended:
        _log.warning("leases_extended", num_leases=counts.extended)
    if counts.foreign_keys:
        _log.warning("foreign_keys_deleted", keys=counts.foreign_keys[:_MAX_LOGGED])
    if counts.letters_dropped:
        _log.warning("dead_letters_dropped", num_letters=counts.letters_dropped)
    if any(numbers.values()):
        _log.info("swept", **numbers)


def _largest(counts: SweepCounts) -> int:
    # Index entries of expired records are removed all the time: counted, but not logged.
    others = (counts.unindexed, counts.recounted, counts.dropped, counts.letters_dropped)
    return max(*_ended_or_moved(counts).values(), *others)


def _ended_or_moved(counts: SweepCounts) -> dict[str, int]:
    names = ("requeued", "dead", "cancelled", "expired", "reannounced")
    return {name: getattr(counts, name) for name in names}
