"""The event loop is woken when a gate that it found closed has opened, and not before."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from batchmill.worker.engine_host.messages import EngineLoad, Ready
from batchmill.worker.jobs.intake_gate import IntakeGate


class Jobs(list[str]):
    """Stands for any number of active jobs, none of them pending or alone."""

    num_pending = 0
    needs_isolation = False


@pytest.fixture
def jobs() -> Jobs:
    return Jobs()


@pytest.fixture
def gate(jobs: Any) -> IntakeGate:
    link: Any = SimpleNamespace(
        ready=Ready("stub", num_blocks=100, block_size=16, max_model_len=100),
        is_moving=True,
        load=EngineLoad(num_running=1, num_waiting=0, num_free_blocks=100),
        num_adds_sent=0,
        num_adds_seen=0,
    )
    claimer: Any = SimpleNamespace(is_held_up=False)
    return IntakeGate(link, jobs, claimer, max_num_seqs=2, max_num_batched_tokens=512)


def test_a_loop_that_has_asked_is_not_woken(gate: IntakeGate, jobs: Jobs) -> None:
    jobs.append("a")
    assert gate.may_ask()
    assert gate.is_open()
    assert not gate.has_opened()


def test_a_loop_that_was_refused_is_woken_when_there_is_room(gate: IntakeGate, jobs: Jobs) -> None:
    jobs.extend("ab")
    assert not gate.may_ask()
    assert not gate.has_opened()
    jobs.pop()
    assert gate.has_opened()
    assert gate.may_ask()
    assert not gate.has_opened()


def test_room_that_comes_during_the_check_is_not_missed(
    gate: IntakeGate, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A report that comes after the check and before the loop notes its result.
    jobs.extend("ab")
    check = gate.is_open
    woken = []

    def check_and_be_overtaken() -> bool:
        seen = check()
        if seen is False and jobs.pop():
            monkeypatch.setattr(gate, "is_open", check)
            woken.append(gate.has_opened())
        return seen

    monkeypatch.setattr(gate, "is_open", check_and_be_overtaken)
    assert not gate.may_ask()
    assert woken == [True]


def test_a_closed_gate_does_not_wake_the_loop(gate: IntakeGate) -> None:
    gate.close()
    assert not gate.may_ask()
    assert not gate.has_opened()


def test_the_prompts_of_two_steps_are_let_in_and_no_more(jobs: Any) -> None:
    jobs.append("a")
    link: Any = SimpleNamespace(
        ready=Ready("stub", num_blocks=1000, block_size=16, max_model_len=100),
        is_moving=True,
        num_adds_sent=7,
        num_adds_seen=3,
    )
    claimer: Any = SimpleNamespace(is_held_up=False)
    gate = IntakeGate(link, jobs, claimer, max_num_seqs=100, max_num_batched_tokens=512)
    # Eight prompts of 64 tokens, the first estimate, fill a step; four are on their way.
    for num_waiting, is_open in ((11, True), (12, False)):
        link.load = EngineLoad(num_running=1, num_waiting=num_waiting, num_free_blocks=1000)
        assert gate.is_open() == is_open
