"""Events about running jobs, from which Flower shows how far each one is."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from batchmill.worker.jobs.active_job import ActiveJob
from batchmill.worker.jobs.task_facts import facts_of_progress

#: Seconds between two calls.
SEND_INTERVAL_S = 1.0
#: At most one event of a job in this time.
_JOB_INTERVAL_S = 5.0
#: At most this many events of this worker per call: a monitor must not become the bottleneck.
_MAX_EVENTS = 20


class ProgressEvents:
    """Sends the progress of running jobs, the one that has waited longest first.

    Not thread-safe: only the event loop's thread calls it.
    """

    def __init__(
        self, jobs: Callable[[], Sequence[ActiveJob]], *, job_interval_s: float = _JOB_INTERVAL_S
    ) -> None:
        """Bind to the list of active jobs."""
        self._jobs = jobs
        self._job_interval_s = job_interval_s
        #: When each running job was reported last, and its tokens then, by engine request.
        self._reported: dict[str, tuple[float, int]] = {}

    def send(self) -> None:
        """Send the events that are due."""
        now_s = time.monotonic()
        jobs = {job.request_id: job for job in self._jobs() if job.is_in_engine}
        last = {
            request_id: self._reported.get(request_id, (job.claimed_at, 0))
            for request_id, job in jobs.items()
        }
        due = [
            job
            for request_id, job in jobs.items()
            if now_s - last[request_id][0] >= self._job_interval_s
            and len(job.token_ids) > last[request_id][1]
        ]
        due.sort(key=lambda job: last[job.request_id][0])
        for job in due[:_MAX_EVENTS]:
            job.task.describe(facts_of_progress(job))
            job.task.report_progress()
            last[job.request_id] = (now_s, len(job.token_ids))
        self._reported = last
