"""A job may lose more tokens only if a worker held it while a fault hindered its checkpoints."""

from __future__ import annotations

import pytest

from batchmill.producer.protocol.attempts import Attempt
from batchmill.producer.protocol.replies import JobState
from batchmill.worker.chaos.hindered import hindered_jobs
from batchmill.worker.chaos.observed import ObservedJob
from batchmill.worker.chaos.timeline import Happening, Timeline

CLAIM = Attempt(1, "w1@chaos", claimed_at_ms=1_000, ended_at_ms=2_000)


def job(*history: Attempt, attempts: int = 2) -> ObservedJob:
    return ObservedJob("j", JobState.COMPLETED, attempts=attempts, history=history)


@pytest.mark.parametrize(
    ("fault", "is_hindered"),
    [
        (Happening("isolate", "w1@chaos", 1_500, 1_600), True),
        (Happening("isolate", "w1@chaos", 1_999, 9_000), True),
        (Happening("isolate", "w1@chaos", 500, 1_000), True),
        (Happening("isolate", "w1@chaos", 500, 999), False),
        (Happening("isolate", "w1@chaos", 2_001, 9_000), False),
        (Happening("isolate", "w2@chaos", 1_500, 1_600), False),
        (Happening("redis_kill", "", 1_500, None), True),
        (Happening("freeze_long", "w1@chaos", 1_500, 5_000), True),
        (Happening("freeze_short", "w1@chaos", 1_500, 1_600), False),
        (Happening("kill_worker", "w1@chaos", 1_500, 1_501), False),
        (Happening("start", "w1@chaos", 1_500, 1_500), False),
    ],
)
def test_claim_and_fault_must_overlap_on_the_same_worker(
    fault: Happening, is_hindered: bool
) -> None:
    timeline = Timeline(happenings=[fault])
    assert hindered_jobs([job(CLAIM)], timeline) == (frozenset("j") if is_hindered else frozenset())


def test_a_job_with_a_single_claim_has_lost_nothing() -> None:
    timeline = Timeline(happenings=[Happening("redis_kill", "", 1_500, 1_600)])
    assert hindered_jobs([job(CLAIM, attempts=1)], timeline) == frozenset()
