"""Failed attempts are retried by the job's policy within the operator's limits, or not at all."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from batchmill.producer import ProducerSettings
from batchmill.producer.job.document import GenerationJob
from batchmill.producer.job.retry import RetryPolicy
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.replies import JobState
from batchmill.producer.store.submission import prepare
from batchmill.worker.jobs.retry_rules import RetryRules, retry_rules
from batchmill.worker.settings import WorkerSettings

from ..conftest import Mill, stored_error, stored_result
from ..monitor import Monitor

#: Attempts end with these causes and codes.
FAILED, DONE = ("failed", "out_of_memory"), ("completed", None)


@pytest.fixture(scope="module")
def retry_mill(_session_server: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mill]:
    """A mill whose worker retries twice, at once."""
    mill = Mill(_session_server.url, tmp_path_factory.mktemp("mill"))
    mill.store.client.flushall()
    mill.start_worker(retry_backoff_s=0)
    yield mill
    mill.close()


def ends(record: Any) -> list[tuple[str, str | None]]:
    return [(attempt.cause, attempt.code) for attempt in record.history]


def test_an_attempt_that_ran_out_of_memory_is_retried_and_continues(
    retry_mill: Mill, reference: Callable[..., Any]
) -> None:
    prompt = "<<oom@3x2>> and then it works"
    job_id = retry_mill.submit(prompt, max_tokens=8, webhook="https://example.com/hook")

    (record,) = retry_mill.wait_ended(job_id)

    assert record.state is JobState.COMPLETED
    assert ends(record) == [FAILED, FAILED, DONE]
    assert [attempt.tokens_at_end for attempt in record.history] == [3, 3, 8]
    assert stored_result(record)["text"] == reference(prompt, 8)[1]
    assert retry_mill.computed(job_id) == list(range(8))
    events = list(retry_mill.store.client.scan_iter(match=keys.event(f"evt_{job_id}*")))
    assert events == [keys.event(f"evt_{job_id}_completed").encode()]


def test_an_output_that_the_engine_could_not_follow_starts_over(
    retry_mill: Mill, reference: Callable[..., Any]
) -> None:
    prompt = "<<bug@3x1>> and then it works"
    job_id = retry_mill.submit(prompt, max_tokens=8)

    (record,) = retry_mill.wait_ended(job_id)

    assert ends(record) == [("failed", "engine_error"), DONE]
    assert [attempt.tokens_at_claim for attempt in record.history] == [0, 0]
    assert (record.history[0].tokens_at_end, record.restarts) == (3, 1)
    assert stored_result(record)["text"] == reference(prompt, 8)[1]
    assert retry_mill.computed(job_id) == [0, 1, 2, *range(8)]


@pytest.mark.parametrize(
    ("policy", "num_attempts"),
    [
        (None, 3),
        ({"max_attempts": 1}, 1),
        ({"max_attempts": 5, "backoff_s": 0}, 5),
        ({"codes": ["engine_error"]}, 1),
        ({"codes": []}, 1),
    ],
)
def test_a_job_has_as_many_attempts_as_its_policy_says(
    retry_mill: Mill, policy: dict[str, Any] | None, num_attempts: int
) -> None:
    (record,) = retry_mill.wait_ended(retry_mill.submit("<<oom@1>>", retry=policy))
    assert ends(record) == [FAILED] * num_attempts
    assert stored_error(record)["retryable"] is True


def test_an_error_that_comes_again_is_never_retried(retry_mill: Mill) -> None:
    (record,) = retry_mill.wait_ended(retry_mill.submit("<<error@1>>"))
    assert ends(record) == [("failed", "numerical_error")]
    (record,) = retry_mill.wait_ended(retry_mill.submit("<<refuse>>"))
    assert ends(record) == [("failed", "unsupported_parameter")]


def test_a_policy_over_the_workers_limit_fails_at_its_claim(retry_mill: Mill) -> None:
    generous = ProducerSettings(retry_attempts_limit=500)
    job = GenerationJob(prompt="hi", retry=RetryPolicy(max_attempts=400))
    new = prepare(job, generous)
    retry_mill.store.submit(new)

    (record,) = retry_mill.wait_ended(new.job_id)

    message = stored_error(record)["message"]
    assert stored_error(record)["code"] == "invalid_request"
    assert "retry.max_attempts is 400, the operator's limit is 10" in message
    assert "BATCHMILL_RETRY_ATTEMPTS_LIMIT" in message


def test_a_document_of_the_inbox_has_the_policy_and_its_limits(retry_mill: Mill) -> None:
    for job_id, attempts in (("good", 2), ("greedy", 11)):
        document = {"id": job_id, "prompt": "<<oom@1x1>>", "retry": {"max_attempts": attempts}}
        retry_mill.store.client.lpush(keys.INBOX, json.dumps(document))
    retry_mill.wait_for(lambda: retry_mill.store.dead_letters(), "the dead letter")
    (letter,) = retry_mill.store.dead_letters()
    assert "retry.max_attempts is 11, the operator's limit is 10" in letter.reason
    retry_mill.wait_for(lambda: retry_mill.store.state("good"), "the record")
    (record,) = retry_mill.wait_ended("good")
    assert ends(record) == [FAILED, DONE]


def test_a_plain_celery_task_is_retried_and_its_sender_gets_one_result(retry_mill: Mill) -> None:
    job = {"prompt": "<<oom@1x1>>", "max_tokens": 2}
    queue = keys.queue_name("demo", "normal")
    monitor = Monitor(retry_mill.celery)
    try:
        sent = retry_mill.celery.send_task(keys.TASK_NAME, kwargs={"job": job}, queue=queue)
        result = sent.get(timeout=60)
        retry_mill.wait_for(lambda: "task-succeeded" in monitor.types_of(sent.id), "the event")
    finally:
        monitor.close()
    assert (result["status"], result["attempt"]) == ("completed", 2)
    retried = [event for event in monitor.events if event["type"] == "task-retried"]
    assert "out_of_memory" in retried[0]["exception"]
    assert "tried again in" in retried[0]["exception"]


def test_a_job_that_waits_for_its_retry_survives_its_worker(private_mill: Mill) -> None:
    mill = private_mill  # the other worker would take the job
    worker = mill.start_worker(retry_backoff_s=60)
    job_id = mill.submit("<<oom@2x1>>", max_tokens=4)
    mill.wait_for(lambda: mill.record(job_id).history, "the failed attempt")
    worker.process.kill()

    mill.start_worker("w2")
    assert mill.state(job_id) is JobState.QUEUED
    assert mill.store.client.zadd(keys.SCHEDULED, {job_id: 1}, xx=True, ch=True) == 1

    (record,) = mill.wait_ended(job_id)
    assert ends(record) == [FAILED, DONE]
    assert [attempt.worker for attempt in record.history] == ["w1@test", "w2@test"]


class Middle(random.Random):
    """Takes the longest wait."""

    def uniform(self, a: float, b: float) -> float:
        assert (a, b) == (0.75, 1)
        return b


@pytest.mark.parametrize(
    ("num_failed", "wait_s"), [(1, 2), (2, 4), (3, 8), (4, 10), (9999, 10), (10_000, None)]
)
def test_waits_are_doubled_up_to_the_longest(num_failed: int, wait_s: float | None) -> None:
    rules = RetryRules(10_000, 2.0, 10.0, frozenset({"out_of_memory"}))
    assert rules.wait_s("out_of_memory", num_failed, Middle()) == wait_s
    assert rules.wait_s("engine_error", num_failed, Middle()) is None


def test_what_a_policy_leaves_out_is_the_operators_default() -> None:
    settings = WorkerSettings(retry_max_attempts=4, retry_codes=("engine_error",))
    default = RetryRules(4, 2.0, 60.0, frozenset({"engine_error"}))
    assert retry_rules(None, settings) == default
    assert retry_rules(RetryPolicy(backoff_s=90), settings).max_backoff_s == 90
    assert retry_rules(RetryPolicy(max_backoff_s=1), settings).backoff_s == 1


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"retry_max_attempts": 11}, "retry_max_attempts is 11.*RETRY_ATTEMPTS_LIMIT"),
        ({"retry_backoff_s": 61}, "retry_backoff_s is 61.*BATCHMILL_RETRY_MAX_BACKOFF_S"),
        ({"retry_codes": "out_of_memory,cancelled"}, "'cancelled', which is never retried"),
    ],
)
def test_settings_that_cannot_work_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WorkerSettings(**values)


def test_codes_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATCHMILL_RETRY_CODES", "engine_error, out_of_memory")
    assert WorkerSettings().retry_codes == ("engine_error", "out_of_memory")
    monkeypatch.setenv("BATCHMILL_RETRY_CODES", "none")
    assert WorkerSettings().retry_codes == ()
