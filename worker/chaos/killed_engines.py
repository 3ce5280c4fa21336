"""Engines that a fault killed while they had a job: for a worker, as if the job had done it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from batchmill.producer.protocol.attempts import Attempt, AttemptCause

from .observed import ObservedJob
from .timeline import Happening, Timeline

_KILLS: Final = frozenset({"kill_engine", "stop_engine"})
_CAUSES: Final = frozenset({AttemptCause.ENGINE_DEATH, AttemptCause.ENGINE_STALL})
#: Longest time that a worker of a run takes to kill an engine that was stopped, also on a busy
#: machine. Jobs that it claims meanwhile see the same engine die.
_STOPPED_MS: Final = 30_000


def count_killed_engines(jobs: Iterable[ObservedJob], timeline: Timeline) -> Mapping[str, int]:
    """Return, by job, how many of its attempts ended because a fault killed their engine.

    A suspect runs alone, so that the death of its engine proves its guilt. Nothing tells a worker
    that a `kill -9` from outside came at that very moment.
    """
    kills = [each for each in timeline.happenings if each.what in _KILLS]
    counts = {
        job.job_id: sum(any(_is_killed(attempt, kill) for kill in kills) for attempt in job.history)
        for job in jobs
    }
    return {job_id: number for job_id, number in counts.items() if number}


def _is_killed(attempt: Attempt, kill: Happening) -> bool:
    if attempt.cause not in _CAUSES or kill.program != attempt.worker:
        return False
    if attempt.claimed_at_ms is None or attempt.ended_at_ms is None:
        return False
    lasts_ms = _STOPPED_MS if kill.what == "stop_engine" else 0
    ended_before_claim = kill.to_ms is not None and kill.to_ms + lasts_ms < attempt.claimed_at_ms
    return kill.from_ms <= attempt.ended_at_ms and not ended_before_claim
