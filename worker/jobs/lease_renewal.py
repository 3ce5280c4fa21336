"""Lease renewal: extends the leases of all active jobs while the engine lives."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from batchmill.producer.protocol.replies import WriteStatus
from batchmill.producer.store.job_store import JobStore

from .active_job import ActiveJob
from .active_jobs import ActiveJobs


class LeaseRenewal:
    """Renews leases every third of their length. One thread uses it.

    A step may take longer than a lease, so leases do not depend on finished steps. They are renewed
    until the engine's loop has stood still for so long that the watchdog kills the engine.
    """

    def __init__(
        self,
        store: JobStore,
        jobs: ActiveJobs,
        *,
        lease_s: float,
        is_engine_stuck: Callable[[], bool],
        waiting_jobs: Callable[[], Sequence[ActiveJob]] = tuple,
    ) -> None:
        """Bind to the jobs and their store.

        Args:
            store: holds the records.
            jobs: the active jobs.
            lease_s: length of a lease, seconds.
            is_engine_stuck: whether the engine is about to be killed.
            waiting_jobs: returns jobs that are not active, but wait for the object store or for
                their media.
        """
        self._store = store
        self._jobs = jobs
        self._lease_s = lease_s
        self._is_engine_stuck = is_engine_stuck
        self._waiting_jobs = waiting_jobs
        self._renewed_at = time.monotonic()

    def renew_if_due(self) -> list[tuple[ActiveJob, WriteStatus]]:
        """Renew the leases of all active jobs, if it is time and the engine is not stuck.

        Those of waiting jobs are renewed with them, and are not in the reply: what comes of them
        later is refused if they are lost.

        Raises:
            redis.exceptions.RedisError: Redis did not reply, or refused; call again.
        """
        now = time.monotonic()
        if now - self._renewed_at < self._lease_s / 3:
            return []
        is_stuck = self._is_engine_stuck()
        jobs = [] if is_stuck else self._jobs.snapshot()
        held = [job.held for job in (*jobs, *self._waiting_jobs())]
        if is_stuck and not held:
            return []
        statuses = self._store.renew(held, lease_ms=int(self._lease_s * 1000))
        if not is_stuck:  # otherwise all are due as soon as it moves again
            self._renewed_at = now
        return list(zip(jobs, statuses, strict=False))
