"""Which sample is selected, what the result says about it, and what is refused at submit."""

from __future__ import annotations

import json
from typing import Any

import pytest

from batchmill.producer.errors import JobRejected
from batchmill.producer.job.selection import Selection
from batchmill.producer.job.validation import parse_job
from batchmill.producer.protocol.replies import Claim
from batchmill.producer.results import JobResult
from batchmill.worker.engine_host.messages import AddRequest, Finished, FinishedSample
from batchmill.worker.jobs.active_job import ActiveJob
from batchmill.worker.jobs.engine_request import engine_request, reports_logprobs
from batchmill.worker.jobs.job_end import finished_end
from batchmill.worker.jobs.selection import select_sample

from ..celery_tasks import a_task

CLAIM = Claim("j", "1.n", b"{}", [], 1, False, None, 0, 0, 0)
LIKELIHOOD = Selection(by="likelihood")


def sample(text: str = "", reason: str = "stop", logprobs: tuple[float, ...] = ()) -> Any:
    return FinishedSample(
        text=text,
        token_ids=list(range(len(logprobs))),
        finish_reason=reason,
        logprobs=[{token_id: value, 99: -0.1} for token_id, value in enumerate(logprobs)],
    )


def test_the_likeliest_sample_is_that_of_the_highest_mean() -> None:
    samples = [
        sample(logprobs=(-1.0, -1.0)),
        sample(logprobs=(-0.5, -0.7, -0.6)),
        sample(logprobs=(-0.6, -0.6, -0.6)),
        sample(logprobs=(-0.1,), reason="error"),
    ]
    found = select_sample(LIKELIHOOD, samples)
    assert found.index == 1  # the longer sum is lower, and the failed one no candidate
    assert found.mean_logprobs[:3] == pytest.approx([-1.0, -0.6, -0.6])
    assert found.mean_logprobs[3] is None
    assert select_sample(LIKELIHOOD, samples[3:]).index is None


@pytest.mark.parametrize(
    ("field", "texts", "index", "votes"),
    [
        (None, ["b", " a ", "a\n", ""], 1, {"a": 2, "b": 1}),
        ("x", ['{"x": 1}', '{"x": 2}', '{"y": 0, "x": 2}'], 1, {"2": 2, "1": 1}),
        ("x.y", ['{"x": 1}', '{"x": {"y": [1, "ä"]}}', "[]", "nothing"], 1, {'[1, "ä"]': 1}),
        ("x", ['{"x": 1}', '{"x": "1"}'], 0, {"1": 1, '"1"': 1}),
        ("x", ['{"x": 3}', '{"x": 1}', '{"x": 1.0}', '{"x": 1e0}'], 1, {"1": 3, "3": 1}),
        ("x", ["[" * 100_000, '{"x"'], None, {}),
        ("x", [r'{"x": "\ud800"}', r'{"x": "\udfff"}'], 0, {r'"\ud800"': 1, r'"\udfff"': 1}),
        ("x", ['{"x": NaN}', '{"x": [-Infinity]}', '{"x": 1e400}'], None, {}),
    ],
)
def test_the_first_sample_with_the_most_frequent_answer_is_selected(
    field: str | None, texts: list[str], index: int | None, votes: dict[str, int]
) -> None:
    rule = Selection(by="vote", field=field)
    found = select_sample(rule, [sample(text) for text in texts])
    assert (found.index, found.votes) == (index, votes)


@pytest.mark.parametrize("wants_logprobs", [True, False])
def test_the_result_has_the_selection_and_no_log_probabilities_that_were_not_asked_for(
    wants_logprobs: bool,
) -> None:
    asked = {"logprobs": 2} if wants_logprobs else {}
    document = parse_job({"prompt": "x", "n": 2, "select": {"by": "likelihood"}, **asked})
    request = engine_request(CLAIM, document, None)
    assert request.params["logprobs"] == (2 if wants_logprobs else 0)
    samples = [sample("a", logprobs=(-2.0,)), sample("b", logprobs=(-1.0,))]
    first = samples[0]
    finished = Finished(
        *("j.1", first.text, first.token_ids, "stop", 3), logprobs=first.logprobs, samples=samples
    )
    job = ActiveJob(CLAIM, AddRequest("j.1", "x", None, {}), a_task("j"))
    job.selection = document.select
    job.reports_logprobs = reports_logprobs(document)
    end = finished_end(job, finished, worker="w1", model="demo")
    assert end.result is not None
    result = JobResult.model_validate_json(end.result)
    assert result.selection is not None
    assert (result.selection.index, result.text) == (1, "a")
    assert result.selected is not None
    assert result.selected.text == "b"
    for found in (result.logprobs, *(each.logprobs for each in result.completions)):
        assert (found is not None) is wants_logprobs


@pytest.mark.parametrize(
    ("fields", "code", "problem"),
    [
        ({"select": {"by": "vote"}}, "invalid_request", "set n to 2 or more"),
        ({"n": 2, "select": {"by": "reward"}}, "unsupported_parameter", "use likelihood, vote or"),
        ({"n": 2, "select": {"by": "decision"}}, "invalid_request", "needs a question"),
        ({"n": 2, "select": {"by": "vote", "question": "x"}}, "invalid_request", "use decision"),
        (
            {"n": 2, "select": {"by": "decision", "question": {"type": "choice"}}},
            "invalid_request",
            "yes_no, score",
        ),
        ({"n": 2, "select": {"by": "decision", "question": 3}}, "invalid_request", "a text"),
        (
            {"n": 2, "select": {"by": "decision", "question": {"type": "score"}}},
            "invalid_request",
            "list of levels",
        ),
        (
            {"n": 2, "select": {"by": "decision", "question": " \n"}},
            "invalid_request",
            "question is empty",
        ),
        (
            {"n": 2, "select": {"by": "decision", "question": {"type": "yes_no"}}},
            "invalid_request",
            "question is empty",
        ),
        ({"n": 2, "select": {"by": "luck"}}, "invalid_request", "select"),
        ({"n": 2, "select": {"by": "likelihood", "field": "x"}}, "invalid_request", "field has no"),
        ({"n": 2, "select": {"by": "vote", "field": "x" * 257}}, "invalid_request", "256"),
        ({"n": 2, "select": {"by": "vote", "weights": []}}, "invalid_request", "weights"),
        ({"n": 2, "select": "vote"}, "invalid_request", "select"),
        ({"best_of": 3}, "unsupported_parameter", "use n, and select in a job"),
    ],
)
def test_a_selection_that_cannot_be_made_is_refused(
    fields: dict[str, Any], code: str, problem: str
) -> None:
    with pytest.raises(JobRejected, match=problem) as refused:
        parse_job({"prompt": "x", **fields})
    assert refused.value.code == code
    assert "select" in json.dumps(fields) or "best_of" in fields
