"""A job that selects by decision has the samples of a plain one, and asks about each of them."""

from __future__ import annotations

from typing import Any

import pytest

from batchmill.engine import Engine, EngineConfig
from batchmill.engine.loading.loading import LoadedModel, load_model
from batchmill.engine.plans.decision.plan import decision_plan
from batchmill.engine.plans.plan import PlannedJob
from batchmill.engine.plans.runner import JobOptions, PlanRunner
from batchmill.producer.job.validation import parse_job
from batchmill.producer.protocol.replies import Claim
from batchmill.producer.results import JobResult
from batchmill.producer.settings import ProducerSettings
from batchmill.producer.store.submission import prepare
from batchmill.worker.engine_host.hosted_engine import RequestRefused
from batchmill.worker.engine_host.messages import Finished
from batchmill.worker.engine_host.real_engine import RealEngine
from batchmill.worker.jobs.active_job import ActiveJob
from batchmill.worker.jobs.engine_request import engine_request
from batchmill.worker.jobs.job_end import finished_end

from ..celery_tasks import a_task

CHAT = [{"role": "user", "content": "Name a river."}]
JOB: dict[str, Any] = {"messages": CHAT, "n": 3, "max_tokens": 8, "seed": 4, "temperature": 1.2}
YES_NO = {"by": "decision", "question": "Is the answer the name of a river?"}
SCORE = {
    "by": "decision",
    "question": {"type": "score", "instructions": "How good?", "levels": ["bad", "fair", "good"]},
}


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    """The demo model in float32, loaded once."""
    return load_model("demo", dtype="float32", device="cpu")


def new_engine(loaded: LoadedModel) -> Engine:
    config = EngineConfig(model="demo", dtype="float32", max_model_len=256, kv_cache_bytes=1 << 26)
    return Engine(config, loaded=loaded)


def finish(
    engine: Engine, resumed: list[int] | None = None, **fields: Any
) -> tuple[JobResult, Finished, list[int]]:
    """Return a job's result and end, and the tokens that were streamed."""
    hosted = RealEngine(engine)
    document = parse_job(JOB | fields)
    claim = Claim("j", "1.n", b"{}", resumed or [], 1, False, None, 0, 0, 0)
    request = engine_request(claim, document, None)
    hosted.add(request)
    shown: list[int] = []
    while hosted.has_unfinished():
        step = hosted.step()
        shown += [token for _, token_ids, _, _ in step.new_outputs for token in token_ids]
        if step.finished:
            (finished,) = step.finished
    job = ActiveJob(claim, request, a_task("j"))
    job.selection = document.select
    end = finished_end(job, finished, worker="w1", model="demo")
    assert end.result is not None
    return JobResult.model_validate_json(end.result), finished, shown


def decide(engine: Engine, state: Any, question: dict[str, Any]) -> dict[str, Any]:
    runner = PlanRunner(engine)
    job = PlannedJob(engine, {"state": state, "questions": {"q": question}})
    runner.add("decided", decision_plan(job), JobOptions())
    while engine.has_unfinished():
        for output in engine.step():
            if output.finished:
                runner.take(output)
    (end,) = runner.take_ends()
    assert end.result is not None
    answer: dict[str, Any] = end.result.section["answers"]["q"]
    return answer


def test_the_sample_with_the_best_answer_is_selected_and_all_are_kept(loaded: LoadedModel) -> None:
    plain, _, also_shown = finish(new_engine(loaded))
    result, finished, shown = finish(new_engine(loaded), select=YES_NO)
    texts = [each.text for each in result.completions]
    assert texts == [each.text for each in plain.completions]
    assert len(set(texts)) == 3
    assert shown == also_shown  # the questions are no part of the stream
    assert result.selection is not None
    found = [each.probabilities["yes"] for each in result.selection.answers if each is not None]
    expected = [
        decide(
            new_engine(loaded),
            [*CHAT, {"role": "assistant", "content": text}],
            {"type": "yes_no", "instructions": YES_NO["question"]},
        )["probabilities"]["yes"]
        for text in texts
    ]
    assert found == pytest.approx(expected, abs=1e-4)
    assert result.selection.index == expected.index(max(expected))
    assert result.selected is not None
    assert result.selected.text == texts[result.selection.index]
    # A token per question, and prompts that begin with the job's own.
    assert finished.num_output_tokens == plain.usage.completion_tokens + 3
    assert result.usage.prompt_tokens > 4 * plain.usage.prompt_tokens


def test_a_resumed_job_selects_the_same_sample_by_levels(loaded: LoadedModel) -> None:
    whole, finished, _ = finish(new_engine(loaded), select=SCORE)
    resumed, _, _ = finish(new_engine(loaded), list(finished.token_ids[:3]), select=SCORE)
    assert [each.text for each in resumed.completions] == [each.text for each in whole.completions]
    assert whole.selection is not None
    assert resumed.selection is not None
    assert resumed.selection.index == whole.selection.index
    scores = [each.score for each in whole.selection.answers if each is not None]
    assert whole.selection.index == scores.index(max(scores, key=lambda score: score or 0))


def test_a_prompt_without_a_chat_is_judged_with_its_output_after_it(loaded: LoadedModel) -> None:
    fields: dict[str, Any] = {
        "messages": None,
        "prompt": "A river in France is the",
        "select": YES_NO,
    }
    result, _, _ = finish(new_engine(loaded), **fields)
    assert result.selection is not None
    (first, *_) = result.selection.answers
    assert first is not None
    expected = decide(
        new_engine(loaded),
        f"A river in France is the{result.text}",
        {"type": "yes_no", "instructions": YES_NO["question"]},
    )
    assert first.probabilities == pytest.approx(expected["probabilities"], abs=1e-4)


@pytest.mark.parametrize(
    "fields",
    [
        {
            "select": {
                "by": "decision",
                "question": {"type": "score", "criteria": ["x" * 999] * 26},
            }
        },
        {
            "messages": [{"role": "user", "content": "river " * 120}],
            "select": {"by": "decision", "question": "Is it a river? " * 25},
        },
    ],
    ids=["question", "question-and-input"],
)
def test_a_question_that_is_too_long_is_refused_before_anything_runs(
    loaded: LoadedModel, fields: dict[str, Any]
) -> None:
    hosted = RealEngine(new_engine(loaded))
    document = parse_job(JOB | fields)
    claim = Claim("j", "1.n", b"{}", [], 1, False, None, 0, 0, 0)
    with pytest.raises(RequestRefused, match=r"together exceed max_model_len \(256\)"):
        hosted.add(engine_request(claim, document, None))
    assert not hosted.has_unfinished()


def test_what_the_questions_cost_is_told_before_they_are_asked() -> None:
    def costs(**fields: Any) -> tuple[int, int]:
        job = prepare(parse_job(JOB | fields), ProducerSettings())
        return job.cost, job.reserved_bytes

    plain, selecting = costs(), costs(select=YES_NO)
    assert selecting[0] > plain[0] + 3 * JOB["max_tokens"]
    assert selecting[1] > plain[1]
