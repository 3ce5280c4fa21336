"""Checkpoints: saves the tokens of all active jobs to their records in one call."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from batchmill.producer.protocol.replies import PlanState, WriteStatus
from batchmill.producer.store.job_store import JobStore

from .active_job import ActiveJob
from .active_jobs import ActiveJobs
from .saved_output import SavedOutput

#: Checkpoints in a row without a waiting engine, after which they become rarer again.
_NUM_CALM = 32


class Checkpoints:
    """Decides when unsaved tokens are written, and writes them. One thread uses it.

    If the engine had to wait for a checkpoint, because Redis or this process is slow, the next ones
    are made a token earlier, down to half of the tokens: then they end in time.
    """

    def __init__(
        self,
        store: JobStore,
        jobs: ActiveJobs,
        saved: SavedOutput,
        *,
        num_tokens: int,
        interval_s: float,
        lease_ms: int,
        note_lag: Callable[[float], None] = lambda lag_s: None,
    ) -> None:
        """Bind to the jobs and their store.

        Args:
            store: holds the records.
            jobs: the active jobs.
            saved: tells the engine what is saved.
            num_tokens: unsaved tokens of one job that make a checkpoint of all jobs due.
            interval_s: longest wait of an unsaved token, seconds.
            lease_ms: a checkpoint renews leases for this long, milliseconds.
            note_lag: takes the age of the oldest token of each checkpoint, seconds.
        """
        self._store = store
        self._jobs = jobs
        self._saved = saved
        self._num_tokens = self._due_tokens = num_tokens
        self._has_engine_waited = False
        self._num_calm = 0
        self._interval_s = interval_s
        self._lease_ms = lease_ms
        self._note_lag = note_lag
        self._saved_at = time.monotonic()

    def is_due(self, job: ActiveJob) -> bool:
        """Return whether a job's unsaved tokens make a checkpoint due. From any thread."""
        return job.num_unsaved >= self._due_tokens

    def note_engine_waited(self) -> None:
        """Note that the engine had to wait for a checkpoint. From any thread."""
        self._has_engine_waited = True

    def write_if_due(self) -> list[tuple[ActiveJob, WriteStatus]]:
        """Write the unsaved tokens of all active jobs, if it is time.

        Raises:
            redis.exceptions.RedisError: Redis did not reply, or refused; call again.
        """
        now = time.monotonic()
        received = self._saved.received
        jobs = self._jobs.snapshot()
        dirty = [job for job in jobs if job.num_unsaved]
        is_time = now - self._saved_at >= self._interval_s
        if not is_time and not any(self.is_due(job) for job in dirty):
            return []
        since = min((job.unsaved_since or now for job in dirty), default=now)
        writes = [job.unsaved() for job in dirty]
        statuses = self._store.checkpoint(writes, lease_ms=self._lease_ms)
        self._saved_at = now
        if dirty:
            self._note_lag(time.monotonic() - since)
        for job, write, status in zip(dirty, writes, statuses, strict=True):
            if status not in (WriteStatus.GAP, WriteStatus.FENCED):
                job.mark_saved(write)
                job.trace.saved(job, len(write.token_ids), now)
        self._saved.note_saved(received)
        self._write_plans(jobs)
        self._adapt()
        return list(zip(dirty, statuses, strict=True))

    def write_last(self, jobs: Sequence[ActiveJob]) -> None:
        """Write the unsaved tokens of jobs that are about to be given back.

        Raises:
            redis.exceptions.RedisError: Redis did not reply, or refused.
        """
        writes = [job.unsaved() for job in jobs if job.num_unsaved]
        self._store.checkpoint(writes, lease_ms=self._lease_ms)
        self._write_plans(jobs)

    def _write_plans(self, jobs: Sequence[ActiveJob]) -> None:
        """Write the state of plans that have a new one; of a lost job, it changes nothing."""
        states = [(job, job.plan_state) for job in jobs if job.plan_state is not None]
        self._store.save_plans(
            [
                PlanState(job.claim.job_id, job.claim.fence, job.claim.identity, state)
                for job, state in states
            ]
        )
        for job, state in states:
            if job.plan_state is state:
                job.plan_state = None

    def _adapt(self) -> None:
        """Choose how many unsaved tokens make the next checkpoint due."""
        if self._has_engine_waited:
            self._has_engine_waited = False
            self._num_calm = 0
            self._due_tokens = max(self._due_tokens - 1, -(-self._num_tokens // 2))
            return
        self._num_calm += 1
        if self._num_calm >= _NUM_CALM:
            self._num_calm = 0
            self._due_tokens = min(self._due_tokens + 1, self._num_tokens)
