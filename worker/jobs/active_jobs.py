"""The table of the jobs that this worker holds, and which of them are in the engine."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import replace

from batchmill.worker.engine_host.messages import AbortRequest, ToEngine

from .active_job import ActiveJob

#: Seconds for which a suspect waits for the jobs in the engine that are not suspects. Beside them,
#: it could make them suspects as well.
_MAX_WAIT_S = 10.0


class ActiveJobs:
    """Table of active jobs in the order of their claims. It alone submits jobs to the engine.

    Invariant: a job that must run alone shares the engine with no other job; a job that was in the
    engine at two engine deaths (a suspect) shares it with fewer than `SUSPECT_GROUP` others of its
    kind. So the cause of two deaths among n jobs is found in n / `SUSPECT_GROUP` groups and one
    group run job by job, not in n runs. Progress clears a job while it runs, and others may join.

    Jobs that may not be submitted yet are pending, first come, first served, and intake closes
    while one is. So that this does not stop a worker for long, a suspect waits only some seconds
    for the jobs that are not suspects to leave, and then joins them. Thread-safe: the lock keeps
    a removal and a submission apart, so a removed job never reaches the engine later.
    """

    def __init__(self, send: Callable[[ToEngine], None]) -> None:
        """Take the function that sends messages to the engine; it must not block."""
        self._send = send
        self._lock = threading.Lock()
        self._jobs: dict[str, ActiveJob] = {}
        self._pending: deque[ActiveJob] = deque()
        self._num_in_engine = 0
        # Those in the engine that had a limit when they were claimed; progress may have ended it.
        self._suspects: list[ActiveJob] = []
        #: Identity of the engine that takes requests; None while there is none.
        self._identity: str | None = None

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def num_pending(self) -> int:
        """Jobs that are claimed but not in the engine."""
        return len(self._pending)

    @property
    def needs_isolation(self) -> bool:
        """Whether a job that must run alone is pending or in the engine."""
        jobs = (*tuple(self._pending), *tuple(self._suspects))
        return any(job.group_limit == 1 for job in jobs)

    def get(self, request_id: str) -> ActiveJob | None:
        """Return the job behind an engine request, or None if it is no longer ours."""
        return self._jobs.get(request_id)

    def find(self, job_id: str) -> ActiveJob | None:
        """Return the active job with an id, or None.

        If Redis lost a claim of this worker, the job may be here twice: the last claim counts.
        """
        jobs = reversed(self.snapshot())
        return next((job for job in jobs if job.claim.job_id == job_id), None)

    def snapshot(self) -> list[ActiveJob]:
        """Return a list of all active jobs."""
        with self._lock:
            return list(self._jobs.values())

    def add(self, job: ActiveJob) -> bool:
        """Add a job, and submit it to the engine if that is allowed.

        Returns:
            False if the job was claimed for an engine of another identity, which has been replaced
            since. It was not added: its tokens must not be continued here.
        """
        with self._lock:
            if self._identity not in (None, job.claim.identity):
                return False
            self._jobs[job.request_id] = job
            self._pending.append(job)
            self._submit_next()
            return True

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

    def submit_pending(self) -> None:
        """Submit the pending jobs that may join by now: others have made progress."""
        if self._pending:
            with self._lock:
                self._submit_next()

    def engine_ready(self, identity: str) -> list[ActiveJob]:
        """Note that a new engine takes requests, and submit the pending jobs.

        Returns:
            The jobs that were claimed for an engine of another identity, which are removed.
        """
        with self._lock:
            self._identity = identity
            others = [job for job in self._pending if job.claim.identity != identity]
            for job in others:
                del self._jobs[job.request_id]
                self._pending.remove(job)
            self._submit_next()
            return others

    def engine_gone(self) -> tuple[list[ActiveJob], list[ActiveJob]]:
        """Note that the engine is gone, and remove all jobs.

        Returns:
            The jobs that were in the engine, and those that were pending.
        """
        with self._lock:
            self._identity = None
            in_engine = [job for job in self._jobs.values() if job.is_in_engine]
            pending = list(self._pending)
            for job in in_engine:
                self._leave_engine(job)
            self._jobs.clear()
            self._pending.clear()
            return in_engine, pending

    def _submit_next(self) -> None:
        while self._identity is not None and self._pending and self._can_submit(self._pending[0]):
            job = self._pending.popleft()
            job.is_in_engine = True
            self._num_in_engine += 1
            if job.group_limit is not None:
                self._suspects.append(job)
            self._send(job.request)
            if job.request.media:  # the engine has them now
                job.request = replace(job.request, media=())

    def _can_submit(self, job: ActiveJob) -> bool:
        """Return whether a job may join those in the engine, by its limit and by theirs."""
        if self._num_in_engine == 0:
            return True
        limits = [each.group_limit for each in self._suspects if each.group_limit is not None]
        if job.group_limit is None:
            return not limits
        if 1 in (job.group_limit, *limits) or len(limits) >= job.group_limit:
            return False
        are_others_in_engine = self._num_in_engine > len(self._suspects)
        return not are_others_in_engine or job.waited_s > _MAX_WAIT_S

    def _leave_engine(self, job: ActiveJob) -> None:
        job.is_in_engine = False
        self._num_in_engine -= 1
        if job in self._suspects:
            self._suspects.remove(job)
