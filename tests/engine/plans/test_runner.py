"""Plans of several requests run beside others, and end once, whatever ends them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any

import pytest

from batchmill.engine import Engine, RequestError, RequestOutput, SamplingParams
from batchmill.engine.plans.plan import Plan, PlanEnd, PlannedRequest, PlanResult
from batchmill.engine.plans.runner import JobOptions, PlanRunner
from batchmill.engine.request.outputs import FinishReason, RequestFailure

from ..tiny_model import POISON

GREEDY = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)
Outputs = Sequence[RequestOutput]


def planned(*prompts: Any, **fields: Any) -> list[PlannedRequest]:
    """Return greedy requests of some prompts."""
    return [PlannedRequest(prompt, GREEDY, **fields) for prompt in prompts]


def two_waves() -> Plan:
    """Read two prompts, then a third, and report all tokens."""
    first = yield planned("one", "two")
    second = yield planned("three")
    return PlanResult({"tokens": [each.token_ids for each in (*first, *second)]})


def steps(engine: Engine, runner: PlanRunner, num_steps: int = 10_000) -> list[RequestOutput]:
    """Step as the worker's engine process does; return the outputs that are no plan's."""
    others = []
    while engine.has_unfinished() and num_steps:
        num_steps -= 1
        others += [each for each in engine.step() if each.finished and not runner.take(each)]
    return others


def run(engine: Engine, plan: Plan, **options: Any) -> PlanEnd:
    """Run one plan to its end."""
    runner = PlanRunner(engine)
    runner.add("job", plan, JobOptions(**options))
    assert steps(engine, runner) == []
    (end,) = runner.take_ends()
    assert not runner.take_ends()
    return end


def test_a_plan_computes_what_its_requests_compute_alone(
    make_engine: Callable[..., Engine],
) -> None:
    alone = [
        each.token_ids for each in make_engine().generate(["one", "two", "three", "other"], GREEDY)
    ]
    engine = make_engine()
    runner = PlanRunner(engine)
    engine.add_request("other", "other", GREEDY)
    runner.add("job", two_waves(), JobOptions())
    (other,) = steps(engine, runner)
    (end,) = runner.take_ends()
    assert other.token_ids == alone[3]
    assert end.result is not None
    assert end.result.section == {"tokens": alone[:3]}
    assert (end.finish_reason, end.error) == (FinishReason.STOP, None)
    assert (end.counts.num_requests, end.counts.num_output_tokens) == (3, 9)
    assert end.counts.num_prompt_tokens == len("onetwothree")


def test_the_jobs_own_output_is_resumed_and_reported(make_engine: Callable[..., Engine]) -> None:
    def plan() -> Plan:
        (own,) = yield planned("own", is_output=True)
        (more,) = yield planned("more")
        return PlanResult({"own": own.token_ids, "more": more.token_ids})

    expected = run(make_engine(), plan())
    assert expected.output is not None
    saved = expected.output.token_ids[:2]
    resumed = run(make_engine(), plan(), resumed_token_ids=saved)
    assert resumed.result == expected.result
    assert resumed.output is not None
    assert resumed.output.token_ids == expected.output.token_ids
    assert resumed.finish_reason is FinishReason.LENGTH

    engine = make_engine()
    runner = PlanRunner(engine)
    runner.add("job", plan(), JobOptions())
    shown = []
    while engine.has_unfinished():
        for output in engine.step():
            if output.new_token_ids and not runner.hides(output):
                shown += output.new_token_ids
            if output.finished:
                assert runner.take(output)
    assert shown == expected.output.token_ids


def test_a_plan_may_compute_nothing(make_engine: Callable[..., Engine]) -> None:
    def plan() -> Generator[Sequence[PlannedRequest], Outputs, PlanResult]:
        assert (yield []) == ()
        return PlanResult({"empty": True})

    engine = make_engine()
    runner = PlanRunner(engine)
    runner.add("job", plan(), JobOptions())
    assert not engine.has_unfinished()
    assert runner.has_ends
    (end,) = runner.take_ends()
    assert end.result == PlanResult({"empty": True})


def test_a_result_may_come_with_a_failure(make_engine: Callable[..., Engine]) -> None:
    def plan() -> Plan:
        yield planned("one")
        return PlanResult({"some": 1}, RequestFailure("low_confidence", "too low"))

    end = run(make_engine(), plan())
    assert (end.finish_reason, end.error) == (
        FinishReason.ERROR,
        RequestFailure("low_confidence", "too low"),
    )
    assert end.result is not None


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_refused_request_refuses_the_job_and_leaves_nothing(
    make_engine: Callable[..., Engine], place: int
) -> None:
    prompts = ["a", "b", "c"]
    prompts[place] = "x" * 100

    def plan() -> Plan:
        yield planned(*prompts)
        raise AssertionError

    engine = make_engine()
    runner = PlanRunner(engine)
    with pytest.raises(RequestError, match="max_model_len"):
        runner.add("job", plan(), JobOptions())
    assert steps(engine, runner) == []
    assert runner.take_ends() == []
    runner.add("job", two_waves(), JobOptions())  # the id is free again
    steps(engine, runner)
    assert len(runner.take_ends()) == 1


def test_a_later_refusal_fails_the_job(make_engine: Callable[..., Engine]) -> None:
    def plan() -> Plan:
        yield planned("a")
        yield planned("b", "x" * 100)
        raise AssertionError

    end = run(make_engine(), plan())
    assert end.finish_reason is FinishReason.ERROR
    assert end.error is not None
    assert end.error.code == "context_length_exceeded"


def test_a_request_that_fails_fails_the_job(make_engine: Callable[..., Engine]) -> None:
    def plan() -> Plan:
        yield planned("a long prompt that goes on", [1, POISON, 2])
        raise AssertionError

    end = run(make_engine(), plan())
    assert end.finish_reason is FinishReason.ERROR
    assert end.error is not None
    assert end.error.code == "numerical_error"


@pytest.mark.parametrize("num_steps", [0, 1, 2, 3, 4, 5])
def test_an_aborted_job_ends_once(make_engine: Callable[..., Engine], num_steps: int) -> None:
    engine = make_engine()
    runner = PlanRunner(engine)
    runner.add("job", two_waves(), JobOptions())
    steps(engine, runner, num_steps)
    assert runner.abort("job")
    steps(engine, runner)
    (end,) = runner.take_ends()
    assert (end.finish_reason, end.error) == (FinishReason.ABORT, None)
    assert not runner.abort("job")


def test_a_deadline_ends_the_job(make_engine: Callable[..., Engine]) -> None:
    end = run(make_engine(), two_waves(), deadline_s=1e-6)
    assert end.finish_reason is FinishReason.ABORT
    assert end.error is not None
    assert end.error.code == "deadline_exceeded"


def test_a_defect_of_a_plan_ends_its_job_alone(make_engine: Callable[..., Engine]) -> None:
    def breaks() -> Plan:
        yield planned("one", "two")
        raise ZeroDivisionError

    engine = make_engine()
    runner = PlanRunner(engine)
    engine.add_request("other", "other", GREEDY)
    runner.add("job", breaks(), JobOptions())
    (other,) = steps(engine, runner)
    assert other.finish_reason is FinishReason.LENGTH
    (end,) = runner.take_ends()
    assert end.error is not None
    assert (end.finish_reason, end.error.code) == (FinishReason.ERROR, "internal_error")


def test_a_plan_that_cannot_be_added_leaves_nothing(make_engine: Callable[..., Engine]) -> None:
    def breaks() -> Plan:
        yield [*planned("one"), PlannedRequest(object(), GREEDY)]  # type: ignore[arg-type]
        return PlanResult({})

    engine = make_engine()
    runner = PlanRunner(engine)
    with pytest.raises((RequestError, TypeError, AttributeError)):
        runner.add("job", breaks(), JobOptions())
    assert steps(engine, runner) == []
    assert not runner.take_ends()
    runner.add("job", two_waves(), JobOptions())  # the id is free again
    steps(engine, runner)
    assert len(runner.take_ends()) == 1
