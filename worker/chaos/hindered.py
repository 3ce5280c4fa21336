"""Jobs that ran while no checkpoint could be saved, so that they may compute more tokens again."""

from __future__ import annotations

from collections.abc import Iterable

from batchmill.producer.protocol.attempts import Attempt

from .fault_kinds import KINDS
from .observed import ObservedJob
from .timeline import Happening, Timeline


def hindered_jobs(jobs: Iterable[ObservedJob], timeline: Timeline) -> frozenset[str]:
    """Return the ids of the jobs that a worker held while a fault hindered its checkpoints.

    The histories in the records decide: whoever looks at a running system at the time of a fault
    sees some claims too early or too late, and none if Redis is slow.
    """
    hindering = [
        each
        for each in timeline.happenings
        if each.what in KINDS and KINDS[each.what].hinders_checkpoints
    ]
    return frozenset(
        job.job_id
        for job in jobs
        if job.attempts > 1
        and any(_is_hindered(attempt, each) for attempt in job.history for each in hindering)
    )


def _is_hindered(attempt: Attempt, fault: Happening) -> bool:
    if fault.program not in ("", attempt.worker) or attempt.claimed_at_ms is None:
        return False
    begins_before_end = attempt.ended_at_ms is None or fault.from_ms <= attempt.ended_at_ms
    return begins_before_end and (fault.to_ms is None or fault.to_ms >= attempt.claimed_at_ms)
