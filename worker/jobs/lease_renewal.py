"""Lease renewal: extends the leases of all active jobs, as long as the engine makes progress."""

from __future__ import annotations

import time
from collections.abc import Callable

from batchmill.producer.protocol.replies import WriteStatus
from batchmill.producer.store.job_store import JobStore

from .active_job import ActiveJob
from .active_jobs import ActiveJobs


class LeaseRenewal:
    """Renews leases every third of their length. One thread uses it.

    It stops while the engine's loop stands still, so a stuck engine loses its jobs by itself.
    """

    def __init__(
        self,
        store: JobStore,
        jobs: ActiveJobs,
        *,
        lease_s: float,
        read_loop_count: Callable[[], int],
    ) -> None:
        """Bind to the jobs and their store.

        Args:
            store: holds the records.
            jobs: the active jobs.
            lease_s: length of a lease, seconds.
            read_loop_count: iterations of the engine's loop so far.
        """
        self._store = store
        self._jobs = jobs
        self._lease_s = lease_s
        self._read_loop_count = read_loop_count
        self._renewed_at = time.monotonic()
        self._renewed_loop_count = -1

    def renew_if_due(self) -> list[tuple[ActiveJob, WriteStatus]]:
        """Renew the leases of all active jobs, if it is time and the engine has moved.

        Raises:
            redis.exceptions.RedisError: Redis did not reply, or refused; call again.
        """
        now = time.monotonic()
        if now - self._renewed_at < self._lease_s / 3:
            return []
        loop_count = self._read_loop_count()
        if loop_count == self._renewed_loop_count:
            return []
        jobs = self._jobs.snapshot()
        lease_ms = int(self._lease_s * 1000)
        statuses = self._store.renew([job.held for job in jobs], lease_ms=lease_ms)
        # Set only here, so that after a long step leases are extended as soon as it has ended.
        self._renewed_at, self._renewed_loop_count = now, loop_count
        return list(zip(jobs, statuses, strict=True))
