"""A job's retry policy is checked in every entrance, against the operator's limits."""

from __future__ import annotations

from typing import Any

import pytest

from batchmill.producer import Client, JobRejected, ProducerSettings, RetryPolicy
from batchmill.producer.bulk.lines import LineSettings, read_line
from batchmill.producer.files.record import Record
from batchmill.producer.job.document import GenerationJob
from batchmill.producer.job.validation import parse_document, parse_job
from batchmill.producer.store.submission import prepare

GOOD = {"max_attempts": 5, "backoff_s": 1, "max_backoff_s": 60.0, "codes": ["out_of_memory"]}
BAD: dict[str, tuple[Any, str, str]] = {
    "no attempt": ({"max_attempts": 0}, "retry.max_attempts", "greater than or equal to 1"),
    "not a number": ({"max_attempts": "3"}, "retry.max_attempts", "valid integer"),
    "a negative wait": ({"backoff_s": -1}, "retry.backoff_s", "greater than or equal to 0"),
    "a wait without end": ({"backoff_s": float("inf")}, "retry.backoff_s", "finite"),
    "waits that disagree": ({"backoff_s": 9, "max_backoff_s": 3}, "retry", "longer than"),
    "an error of the caller": ({"codes": ["invalid_request"]}, "retry.codes", "never retried"),
    "a code twice": ({"codes": ["engine_error"] * 2}, "retry.codes", "twice"),
    "an unknown field": ({"times": 3}, "retry.times", "not a parameter"),
    "a number alone": (3, "retry", "an object"),
}
OVER = [({"max_attempts": 11}, "11"), ({"backoff_s": 4000}, "4000"), ({"max_backoff_s": 1e6}, "1e")]


def test_a_policy_is_kept_in_the_document() -> None:
    job = parse_job({"prompt": "hi", "retry": GOOD | {"max_attempts": 5.0}})
    stored = parse_document(prepare(job, ProducerSettings()).document)
    assert stored.retry is not None
    assert stored.retry.model_dump() == GOOD
    assert "retry" not in prepare(GenerationJob(prompt="hi"), ProducerSettings()).document


@pytest.mark.parametrize(("policy", "param", "message"), BAD.values(), ids=BAD)
def test_a_wrong_policy_is_refused_by_name(policy: Any, param: str, message: str) -> None:
    with pytest.raises(JobRejected, match=message) as refusal:
        parse_job({"prompt": "hi", "retry": policy})
    assert refusal.value.param == param


@pytest.mark.parametrize("line", [{"prompt": "hi"}, {"url": "/v1/completions"}])
def test_a_line_of_a_file_has_a_policy(line: dict[str, Any]) -> None:
    fields = {"prompt": "hi", "retry": GOOD}
    data = {**line, "body": fields} if "url" in line else fields
    read = read_line(Record(1, 1, data), LineSettings())
    assert read.job is not None
    assert read.job.retry == RetryPolicy.model_validate(GOOD)
    refused = read_line(Record(1, 1, fields | {"retry": {"max_attempts": 0}}), LineSettings())
    assert refused.problem is not None
    assert refused.problem.param == "retry.max_attempts"


@pytest.mark.parametrize(("policy", "value"), OVER)
def test_a_policy_over_the_operators_limit_is_refused(
    redis_url: str, policy: dict[str, Any], value: str
) -> None:
    (name,) = policy
    with Client(redis_url) as client, pytest.raises(JobRejected, match="BATCHMILL_RETRY_") as error:
        client.submit(prompt="hi", retry=policy)
    assert error.value.param == f"retry.{name}"
    assert f"retry.{name} is {value}" in str(error.value)
    assert "the operator's limit is" in str(error.value)
