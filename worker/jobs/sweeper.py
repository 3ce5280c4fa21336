"""The sweep: puts back the jobs of dead workers and lost announcements, and ends late jobs."""

from __future__ import annotations

import time

import structlog

from batchmill.producer.store.job_store import JobStore

from .clock_watch import ClockWatch

_log = structlog.stdlib.get_logger("batchmill.sweeper")
#: Jobs of each kind per call. Redis serves no other client during the call.
_LIMIT = 500
#: Between two walks over all unfinished jobs, which repair what deleting keys by hand has torn
#: apart. All workers together walk one page of `_LIMIT` jobs per second.
_REPAIR_INTERVAL_MS = 10_000
#: Names of keys in one line of the log.
_MAX_LOGGED = 20


def announce_delayed_jobs(store: JobStore) -> None:
    """Announce delayed jobs that are due: a small call, so that they wait under a second."""
    while store.announce_due(limit=_LIMIT) == _LIMIT:
        pass


def sweep(
    store: JobStore,
    clock_watch: ClockWatch,
    *,
    reannounce_grace_ms: int,
    sweep_interval_ms: int,
    extension_ms: int,
    max_letters: int | None = None,
    usage_days: int | None = None,
    unserved_ttl_ms: int | None = None,
) -> None:
    """Sweep until nothing is left to do. Any number of workers may sweep at once.

    Raises:
        redis.exceptions.RedisError: Redis did not reply; the next sweep makes up for it.
    """
    while True:
        sent_at = time.monotonic()
        counts = store.sweep(
            limit=_LIMIT,
            reannounce_grace_ms=reannounce_grace_ms,
            sweep_interval_ms=sweep_interval_ms,
            extension_ms=extension_ms,
            repair_interval_ms=_REPAIR_INTERVAL_MS,
            max_letters=max_letters,
            usage_days=usage_days,
            unserved_ttl_ms=unserved_ttl_ms,
        )
        clock_watch.observe(counts.redis_ms, sent_at)
        numbers = {
            "requeued": counts.requeued,
            "dead": counts.dead,
            "cancelled": counts.cancelled,
            "expired": counts.expired,
            "reannounced": counts.reannounced,
        }
        if counts.extended:
            _log.warning("leases_extended", num_leases=counts.extended)
        if counts.foreign_keys:
            _log.warning("foreign_keys_deleted", keys=counts.foreign_keys[:_MAX_LOGGED])
        if counts.letters_dropped:
            _log.warning("dead_letters_dropped", num_letters=counts.letters_dropped)
        if any(numbers.values()):
            _log.info("swept", **numbers)
        # Index entries of expired records are removed all the time: counted, but not logged.
        others = (counts.unindexed, counts.recounted, counts.dropped, counts.letters_dropped)
        if max(*numbers.values(), *others) < _LIMIT:
            return
