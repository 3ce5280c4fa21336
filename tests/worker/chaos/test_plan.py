"""A plan of `batchmill bench chaos` depends on its seed and options alone."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest

from batchmill.worker.chaos.fault_kinds import KINDS, Lane
from batchmill.worker.chaos.plan import Plan, make_plan
from batchmill.worker.chaos.planned_jobs import OrderKind
from batchmill.worker.service_errors import BenchFailed

from ..command_line import call, run


def plan(**options: Any) -> Plan:
    given = {"seed": 1, "num_jobs": 200, "duration_s": 60, "lease_s": 2, "kinds": tuple(KINDS)}
    return make_plan(**{**given, "has_stub": True, **options})


def test_a_seed_makes_the_same_plan_each_time() -> None:
    assert plan() == plan()
    assert plan().digest == plan().digest
    assert plan(seed=2).digest != plan().digest


@pytest.mark.parametrize("num_jobs", [1, 7, 200])
def test_a_plan_has_exactly_the_jobs_that_were_asked_for(num_jobs: int) -> None:
    names = [job.name for _, job in plan(num_jobs=num_jobs).jobs]
    assert len(set(names)) == len(names) == num_jobs


def test_every_kind_of_fault_comes_before_any_comes_again() -> None:
    faults = plan(duration_s=300).faults
    for lane in Lane:
        times = Counter(fault.kind for fault in faults if KINDS[fault.kind].lane is lane)
        assert len(times) == sum(kind.lane is lane for kind in KINDS.values())
        assert max(times.values()) - min(times.values()) <= 1


def test_faults_of_one_lane_do_not_overlap() -> None:
    ends = dict.fromkeys(Lane, 0.0)
    for fault in plan(duration_s=300).faults:
        lane = KINDS[fault.kind].lane
        assert fault.at_s >= ends[lane]
        ends[lane] = fault.at_s + fault.duration_s


def test_only_chosen_faults_are_planned() -> None:
    kinds = {fault.kind for fault in plan(kinds=("cut", "kill_worker")).faults}
    assert kinds == {"cut", "kill_worker"}


def test_an_unknown_fault_is_refused_with_the_known_ones() -> None:
    with pytest.raises(BenchFailed, match=r"'flood' is unknown; it must be one of kill_worker, "):
        plan(kinds=("flood",))


def test_jobs_for_a_real_engine_crash_nothing() -> None:
    made = plan(has_stub=False)
    assert {OrderKind.POISON, OrderKind.FAILING} & {order.kind for order in made.orders} == set()
    assert not [job for _, job in made.jobs if "<<" in job.prompt]


def test_the_command_prints_a_plan_and_runs_nothing() -> None:
    arguments = ("bench", "chaos", "--jobs", "20", "--seed", "3", "--plan")
    shown = json.loads(run(*arguments, "--json").stdout)
    assert sum(len(order["jobs"]) for order in shown["orders"]) == 20
    assert shown["plan"] in run(*arguments).stdout


def test_the_command_lists_the_kinds_of_faults() -> None:
    assert list(json.loads(run("bench", "chaos", "--list-faults", "--json").stdout)) == list(KINDS)


def test_a_broker_that_is_in_use_or_would_be_restarted_is_refused(redis_url: str) -> None:
    answer = call("bench", "chaos", "--broker-url", redis_url, "--faults", "cut")
    assert answer.returncode == 1
    assert "must begin with redis://" in answer.stderr
    url = "redis://127.0.0.1:1/0"
    answer = call("bench", "chaos", "--broker-url", url, "--faults", "redis_kill")
    assert answer.returncode == 1
    assert "redis_kill need a server that this command starts" in answer.stderr
