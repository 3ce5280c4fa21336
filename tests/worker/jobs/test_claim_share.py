"""A slow worker leaves jobs to faster ones near the end of a queue, but none waits for long."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from batchmill.producer.protocol.records import WorkerInfo
from batchmill.producer.protocol.store_counts import QueueDepth
from batchmill.worker.jobs.active_jobs import ActiveJobs
from batchmill.worker.jobs.claim_share import ClaimShare, share_of
from batchmill.worker.jobs.throughput import BusySpeed
from batchmill.worker.metrics.autoscaling import SPEED_STAT
from batchmill.worker.settings import WorkerSettings

from ...support.worker_info import worker_info
from ..celery_tasks import ignore


def other(speed: float | None, jobs: int = 0) -> WorkerInfo:
    stats: dict[str, Any] = {"jobs": jobs} | ({} if speed is None else {SPEED_STAT: speed})
    return worker_info("other@test", stats=stats)


@pytest.mark.parametrize(
    ("num_jobs", "speed", "others", "share"),
    [
        (100, 10.0, [other(30.0)], 25),
        (100, 30.0, [other(10.0)], 75),
        (9, 10.0, [other(10.0), other(None)], 3),
        (1, 1.0, [other(1000.0)], 1),
    ],
)
def test_a_share_is_in_proportion_to_speed(
    num_jobs: int, speed: float, others: list[WorkerInfo], share: int
) -> None:
    assert share_of(num_jobs, speed, others) == share


class Fleet:
    """A store with as many waiting jobs and other workers as a test says."""

    def __init__(self) -> None:
        self.num_waiting = 0
        self.others: list[WorkerInfo] = []

    def read(self, read: object) -> list[QueueDepth]:
        return [QueueDepth("batchmill.demo.normal", self.num_waiting, 0)]

    def list_workers(self) -> list[WorkerInfo]:
        return self.others


@pytest.fixture
def fleet() -> Fleet:
    fleet = Fleet()
    fleet.others = [other(300.0, jobs=15)]
    return fleet


def share(fleet: Fleet, speed: float | None = 100.0, **settings: Any) -> ClaimShare:
    measured = BusySpeed()
    measured.tokens_per_s = speed
    store: Any = SimpleNamespace(read=fleet.read, list_workers=fleet.list_workers)
    return ClaimShare(
        WorkerSettings(**({"claim_share": True} | settings)),
        store,
        ActiveJobs(ignore),
        measured,
        name="w",
        on_room=ignore,
    )


def look(share: ClaimShare) -> int | None:
    """Look, and return the number of jobs from which on the worker takes no more."""
    share.look()
    return next((number for number in range(1000) if share.has_reached(number)), None)


def test_a_long_queue_bounds_nothing_and_a_short_one_leaves_jobs_to_faster_workers(
    fleet: Fleet,
) -> None:
    slow = share(fleet)
    fleet.num_waiting = 3985
    assert look(slow) == 1000 or look(slow) is None
    fleet.num_waiting = 25
    assert look(slow) == 10
    fleet.num_waiting = 0
    assert look(slow) is None


def test_the_share_grows_while_jobs_wait_in_vain(fleet: Fleet) -> None:
    slow = share(fleet)
    fleet.num_waiting = 5
    assert [look(slow), look(slow), look(slow)] == [5, 6, 7]
    fleet.num_waiting = 4
    assert look(slow) == 5


@pytest.mark.parametrize("case", ["off", "speed unknown", "alone", "many workers"])
def test_no_share_without_a_reason(fleet: Fleet, case: str) -> None:
    fleet.num_waiting = 5
    if case in ("alone", "many workers"):
        fleet.others = fleet.others * (0 if case == "alone" else 200)
    bounded = share(fleet, None if case == "speed unknown" else 100.0, claim_share=case != "off")
    assert look(bounded) is None
