"""How long the jobs of the last minute waited, and how soon their first token came."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence

from .active_job import ActiveJob

#: Seconds for which the times of an ended job count.
_WINDOW_S = 60.0
#: Jobs that are kept: of more in a minute, the newest.
_MAX_JOBS = 2048


class RecentTimes:
    """Keeps the times of jobs that have ended lately. Any thread may use it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        #: When the job ended, seconds in the queue, seconds to its first token if it had one.
        self._times: deque[tuple[float, float, float | None]] = deque(maxlen=_MAX_JOBS)

    def note(self, job: ActiveJob) -> None:
        """Note the times of a job that ends now."""
        claim, first = job.claim, job.first_token_at
        queue_s = max(0.0, (claim.started_at_ms - claim.enqueued_at_ms) / 1000)
        ttft_s = None if first is None else first - job.claimed_at
        with self._lock:
            self._times.append((time.monotonic(), queue_s, ttft_s))

    def stats(self) -> dict[str, float]:
        """Return percentiles by name; nothing if no job ended in the last minute."""
        since = time.monotonic() - _WINDOW_S
        with self._lock:
            recent = [times for times in self._times if times[0] >= since]
        queue_s = sorted(times[1] for times in recent)
        ttft_s = sorted(times[2] for times in recent if times[2] is not None)
        return {
            f"{name}_p{percent}_s": round(_percentile(values, percent), 4)
            for name, values in (("queue", queue_s), ("ttft", ttft_s))
            for percent in (50, 95)
            if values
        }


def _percentile(values: Sequence[float], percent: int) -> float:
    return values[min(len(values) - 1, len(values) * percent // 100)]
