"""The sweep: puts back the jobs of dead workers and lost announcements, and ends late jobs."""

from __future__ import annotations

import structlog

from batchmill.producer.store.job_store import JobStore

_log = structlog.stdlib.get_logger("batchmill.sweeper")
#: Jobs of each kind per call. Redis serves no other client during the call.
_LIMIT = 500


def sweep(
    store: JobStore, *, reannounce_grace_ms: int, sweep_interval_ms: int, extension_ms: int
) -> None:
    """Sweep until nothing is left to do. Any number of workers may sweep at once.

    Raises:
        redis.exceptions.RedisError: Redis did not reply; the next sweep makes up for it.
    """
    while True:
        counts = store.sweep(
            limit=_LIMIT,
            reannounce_grace_ms=reannounce_grace_ms,
            sweep_interval_ms=sweep_interval_ms,
            extension_ms=extension_ms,
        )
        numbers = {
            "requeued": counts.requeued,
            "dead": counts.dead,
            "cancelled": counts.cancelled,
            "expired": counts.expired,
            "reannounced": counts.reannounced,
        }
        if counts.extended:
            _log.warning("leases_extended", num_leases=counts.extended)
        if any(numbers.values()):
            _log.info("swept", **numbers)
        # Index entries of expired records are removed all the time: counted, but not logged.
        if max(*numbers.values(), counts.unindexed, counts.recounted) < _LIMIT:
            return
