"""Faults of one lane follow each other, also on a machine that is too slow for the plan."""

from __future__ import annotations

from batchmill.worker.chaos.fault_kinds import KINDS, Lane
from batchmill.worker.chaos.plan import PlannedFault, make_plan
from batchmill.worker.chaos.schedule import Schedule

PLAN = make_plan(seed=3, num_jobs=10, duration_s=60, lease_s=2, kinds=tuple(KINDS), has_stub=True)
LATE_S = 1000.0


def lane_of(fault: PlannedFault) -> Lane:
    return KINDS[fault.kind].lane


def test_a_fault_begins_at_its_time() -> None:
    schedule = Schedule(PLAN)
    first = PLAN.faults[0]

    assert list(schedule.take_due(first.at_s - 0.001, [])) == []
    assert first in list(schedule.take_due(first.at_s, []))


def test_a_fault_that_is_late_waits_for_the_one_before_it_in_its_lane() -> None:
    schedule = Schedule(PLAN)
    active = list(schedule.take_due(LATE_S, []))

    assert {lane_of(fault) for fault in active} == set(Lane)
    assert list(schedule.take_due(LATE_S, active)) == []
    ended = active.pop()
    (following,) = schedule.take_due(LATE_S, active)
    assert lane_of(following) is lane_of(ended)


def test_every_fault_begins_once_in_the_order_of_its_lane() -> None:
    schedule = Schedule(PLAN)
    begun: list[PlannedFault] = []
    while schedule:
        begun += schedule.take_due(LATE_S, [])

    for lane in Lane:
        planned = [fault for fault in PLAN.faults if lane_of(fault) is lane]
        assert [fault for fault in begun if lane_of(fault) is lane] == planned
