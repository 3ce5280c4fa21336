"""Checkpoints: saves the tokens of all active jobs to their records in one call."""

from __future__ import annotations

import time
from collections.abc import Sequence

from batchmill.producer.protocol.replies import WriteStatus
from batchmill.producer.store.job_store import JobStore

from .active_job import ActiveJob
from .active_jobs import ActiveJobs


class Checkpoints:
    """Decides when unsaved tokens are written, and writes them. One thread uses it."""

    def __init__(
        self,
        store: JobStore,
        jobs: ActiveJobs,
        *,
        num_tokens: int,
        interval_s: float,
        lease_ms: int,
    ) -> None:
        """Bind to the jobs and their store.

        Args:
            store: holds the records.
            jobs: the active jobs.
            num_tokens: unsaved tokens of one job that make a checkpoint of all jobs due.
            interval_s: longest wait of an unsaved token, seconds.
            lease_ms: a checkpoint renews leases for this long, milliseconds.
        """
        self._store = store
        self._jobs = jobs
        self._num_tokens = num_tokens
        self._interval_s = interval_s
        self._lease_ms = lease_ms
        self._saved_at = time.monotonic()

    def is_due(self, job: ActiveJob) -> bool:
        """Return whether a job's unsaved tokens make a checkpoint due. From any thread."""
        return job.num_unsaved >= self._num_tokens

    def write_if_due(self) -> list[tuple[ActiveJob, WriteStatus]]:
        """Write the unsaved tokens of all active jobs, if it is time.

        Raises:
            redis.exceptions.RedisError: Redis did not reply, or refused; call again.
        """
        now = time.monotonic()
        dirty = [job for job in self._jobs.snapshot() if job.num_unsaved]
        is_time = now - self._saved_at >= self._interval_s
        if not is_time and not any(self.is_due(job) for job in dirty):
            return []
        writes = [job.unsaved() for job in dirty]
        statuses = self._store.checkpoint(writes, lease_ms=self._lease_ms)
        self._saved_at = now
        for job, write, status in zip(dirty, writes, statuses, strict=True):
            if status not in (WriteStatus.GAP, WriteStatus.FENCED):
                job.mark_saved(write)
        return list(zip(dirty, statuses, strict=True))

    def write_last(self, jobs: Sequence[ActiveJob]) -> None:
        """Write the unsaved tokens of jobs that are about to be given back.

        Raises:
            redis.exceptions.RedisError: Redis did not reply, or refused.
        """
        writes = [job.unsaved() for job in jobs if job.num_unsaved]
        self._store.checkpoint(writes, lease_ms=self._lease_ms)
