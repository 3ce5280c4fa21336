"""Which deaths of engines are the work of a fault, and not of the job that ran alone."""

from __future__ import annotations

import pytest

from batchmill.producer.protocol.attempts import Attempt, AttemptCause
from batchmill.producer.protocol.replies import JobState
from batchmill.worker.chaos.killed_engines import count_killed_engines
from batchmill.worker.chaos.observed import ObservedJob
from batchmill.worker.chaos.timeline import Happening, Timeline

KILL = Happening("kill_engine", "w1@chaos", 1_500, 1_501)
STOP = Happening("stop_engine", "w1@chaos", 1_500, 1_501)


def attempt(worker: str, from_ms: int, to_ms: int, cause: AttemptCause) -> Attempt:
    return Attempt(1, worker, claimed_at_ms=from_ms, ended_at_ms=to_ms, cause=cause)


@pytest.mark.parametrize(
    ("ended", "number"),
    [
        (attempt("w1@chaos", 1_000, 1_600, AttemptCause.ENGINE_DEATH), 1),
        (attempt("w1@chaos", 1_000, 1_600, AttemptCause.ENGINE_STALL), 1),
        (attempt("w2@chaos", 1_000, 1_600, AttemptCause.ENGINE_DEATH), 0),
        (attempt("w1@chaos", 1_000, 1_400, AttemptCause.ENGINE_DEATH), 0),
        (attempt("w1@chaos", 1_502, 1_600, AttemptCause.ENGINE_DEATH), 0),
        (attempt("w1@chaos", 1_000, 1_600, AttemptCause.WORKER_LOST), 0),
    ],
)
def test_the_kill_must_hit_the_attempt(ended: Attempt, number: int) -> None:
    job = ObservedJob("j", JobState.COMPLETED, attempts=2, history=(ended,))
    counts = count_killed_engines([job], Timeline(happenings=[KILL]))
    assert counts.get("j", 0) == number


def test_a_stopped_engine_dies_later_with_the_jobs_that_were_claimed_meanwhile() -> None:
    ended = attempt("w1@chaos", 4_000, 4_500, AttemptCause.ENGINE_STALL)
    job = ObservedJob("j", JobState.COMPLETED, attempts=2, history=(ended,))
    assert count_killed_engines([job], Timeline(happenings=[STOP])) == {"j": 1}
    assert count_killed_engines([job], Timeline(happenings=[KILL])) == {}
