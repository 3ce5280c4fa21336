"""The table of the jobs that this worker holds, and which of them are in the engine."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from batchmill.worker.engine_host.messages import AbortRequest, ToEngine

from .active_job import ActiveJob


class ActiveJobs:
    """Table of active jobs in the order of their claims. It alone submits jobs to the engine.

    Invariant: a job that must run alone shares the engine with no other job; a job that was in the
    engine at two engine deaths shares it with fewer than `SUSPECT_GROUP` others of its kind. So the
    cause of two deaths among n jobs is found in n / `SUSPECT_GROUP` groups and one group run job by
    job, not in n runs. Jobs that may not be submitted yet are pending, first come, first served.
    There are hardly ever any, because intake closes while one is pending. Thread-safe: the lock
    keeps a removal and a submission apart, so a removed job never reaches the engine later.
    """

    def __init__(self, send: Callable[[ToEngine], None]) -> None:
        """Take the function that sends messages to the engine; it must not block."""
        self._send = send
        self._lock = threading.Lock()
        self._jobs: dict[str, ActiveJob] = {}
        self._pending: deque[ActiveJob] = deque()
        self._num_in_engine = 0
        # How many jobs may be in the engine together, given those in it; None means any number.
        self._group_limit: int | None = None
        self._engine_is_ready = False

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def num_pending(self) -> int:
        """Jobs that are claimed but not in the engine."""
        return len(self._pending)

    @property
    def needs_isolation(self) -> bool:
        """Whether a job that must run alone is pending or in the engine."""
        return self._group_limit == 1 or any(job.claim.alone for job in tuple(self._pending))

    def get(self, request_id: str) -> ActiveJob | None:
        """Return the job behind an engine request, or None if it is no longer ours."""
        return self._jobs.get(request_id)

    def find(self, job_id: str) -> ActiveJob | None:
        """Return the active job with an id, or None."""
        return next((job for job in self.snapshot() if job.claim.job_id == job_id), None)

    def snapshot(self) -> list[ActiveJob]:
        """Return a list of all active jobs."""
        with self._lock:
            return list(self._jobs.values())

    def add(self, job: ActiveJob) -> None:
        """Add a job, and submit it to the engine if that is allowed."""
        with self._lock:
            self._jobs[job.request_id] = job
            self._pending.append(job)
            self._submit_next()

    def remove(self, job: ActiveJob) -> bool:
        """Remove a job; return False if it was removed before."""
        with self._lock:
            if self._jobs.pop(job.request_id, None) is None:
                return False
            if job.is_in_engine:
                self._leave_engine(job)
            else:
                self._pending.remove(job)
            self._submit_next()
            return True

    def abort(self, job: ActiveJob) -> bool:
        """Ask the engine to stop a job; return False if it is not there, so no reply will come."""
        with self._lock:
            if not job.is_in_engine:
                return False
            self._send(AbortRequest(job.request_id))
            return True

    def engine_ready(self) -> None:
        """Note that a new engine takes requests, and submit the pending jobs."""
        with self._lock:
            self._engine_is_ready = True
            self._submit_next()

    def engine_gone(self) -> tuple[list[ActiveJob], list[ActiveJob]]:
        """Note that the engine is gone, and remove all jobs.

        Returns:
            The jobs that were in the engine, and those that were pending.
        """
        with self._lock:
            self._engine_is_ready = False
            in_engine = [job for job in self._jobs.values() if job.is_in_engine]
            pending = list(self._pending)
            for job in in_engine:
                self._leave_engine(job)
            self._jobs.clear()
            self._pending.clear()
            return in_engine, pending

    def _submit_next(self) -> None:
        while self._engine_is_ready and self._pending and self._can_submit(self._pending[0]):
            job = self._pending.popleft()
            job.is_in_engine = True
            self._num_in_engine += 1
            self._group_limit = job.group_limit
            self._send(job.request)

    def _can_submit(self, job: ActiveJob) -> bool:
        """Return whether a job may join those in the engine, by its limit and by theirs."""
        if self._num_in_engine == 0:
            return True
        if job.group_limit != self._group_limit:
            return False
        return self._group_limit is None or self._num_in_engine < self._group_limit

    def _leave_engine(self, job: ActiveJob) -> None:
        job.is_in_engine = False
        self._num_in_engine -= 1
        if self._num_in_engine == 0:
            self._group_limit = None
