"""Jobs through a real worker: their records, Celery states, events and logs."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from batchmill.producer import Client, EtaUnknown
from batchmill.producer.job.document import GenerationJob
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.replies import JobState
from batchmill.producer.settings import ProducerSettings
from batchmill.producer.store.submission import prepare

from ..announcements import QUEUE, announcement
from ..conftest import Mill, stored_error, stored_result
from ..monitor import Monitor

#: With the stub's default step time, a job of this length takes about four seconds unless stopped.
ENDLESS = 2000


@pytest.fixture(scope="module")
def monitor(running_mill: Mill) -> Iterator[Monitor]:
    client = running_mill.store.client
    num_listeners = client.pubsub_numpat()
    monitor = Monitor(running_mill.celery)
    running_mill.wait_for(lambda: client.pubsub_numpat() > num_listeners, "the monitor to listen")
    yield monitor
    monitor.close()


def test_a_job_completes_with_its_result_in_the_record(
    running_mill: Mill, reference: Callable[..., Any]
) -> None:
    job_id = running_mill.submit("count", max_tokens=20, metadata={"who": "me"})

    (record,) = running_mill.wait_ended(job_id)

    token_ids, text = reference("count", 20)
    result = stored_result(record)
    assert record.state is JobState.COMPLETED
    assert result["text"] == text
    assert running_mill.store.read_tokens(job_id) == token_ids
    assert (result["finish_reason"], result["status"]) == ("length", "completed")
    assert result["usage"]["completion_tokens"] == 20
    assert result["metadata"] == {"who": "me"}
    assert (result["attempt"], result["worker"]) == (1, "w1@test")
    assert running_mill.computed(job_id) == list(range(20))
    counts = running_mill.store.counts()
    assert (counts.in_progress, counts.queued) == (0, 0)


def test_a_chat_is_put_into_the_models_template(
    running_mill: Mill, reference: Callable[..., Any]
) -> None:
    job_id = running_mill.submit(messages=[{"role": "user", "content": "hello"}])

    (record,) = running_mill.wait_ended(job_id)

    assert stored_result(record)["text"] == reference("<user>hello", 16)[1]


def test_celery_monitors_see_a_job_as_an_ordinary_task(
    running_mill: Mill, monitor: Monitor
) -> None:
    job_id = running_mill.submit(
        "SECRET in prompt", max_tokens=50, tenant="acme", tags=["night-run"]
    )
    running_mill.wait_ended(job_id)
    running_mill.wait_for(lambda: len(monitor.types_of(job_id)) >= 3, "the events")

    assert monitor.types_of(job_id) == ["task-received", "task-started", "task-succeeded"]
    task = monitor.state.tasks[job_id]
    assert (task.state, task.name) == ("SUCCESS", "batchmill.generate")
    assert re.fullmatch(r"<50 tokens, [0-9.]+ tok/s, first token after [0-9.]+ s>", task.result)
    facts = ast.literal_eval(task.kwargs)
    assert facts | {"tok/s": 0, "ttft_s": 0} == {
        "model": "demo",
        "class": "normal",
        "tenant": "acme",
        "tags": "night-run",
        "max_tokens": 50,
        "prompt_tokens": facts["prompt_tokens"],
        "tokens": 50,
        "tok/s": 0,
        "ttft_s": 0,
    }
    assert facts["tok/s"] > 1
    assert 0.1 < task.runtime < 5.0
    # Celery's own result backend keeps nothing: the record has the result.
    assert running_mill.celery.AsyncResult(job_id).state == "PENDING"


def test_celery_monitors_see_how_far_a_running_job_is(running_mill: Mill, monitor: Monitor) -> None:
    job_id = running_mill.submit("a long one", max_tokens=ENDLESS * 20)
    running_mill.wait_for(
        lambda: "task-STARTED" in monitor.types_of(job_id), "its progress", timeout_s=60
    )

    task = monitor.state.tasks[job_id]
    assert task.state == "STARTED"  # Flower has a button to end it, and finds it as started
    facts = ast.literal_eval(task.kwargs)
    assert facts["max_tokens"] == ENDLESS * 20
    assert 0 < facts["tokens"] < ENDLESS * 20
    running_mill.celery.control.revoke(job_id, terminate=True)
    (record,) = running_mill.wait_ended(job_id)
    running_mill.wait_for(lambda: task.state == "REVOKED", "the end of the task")
    assert record.state is JobState.CANCELLED


def test_celery_monitors_see_the_code_of_a_failure(running_mill: Mill, monitor: Monitor) -> None:
    job_id = running_mill.submit("SECRET <<error@4>>", max_tokens=9)
    running_mill.wait_ended(job_id)
    running_mill.wait_for(lambda: "task-failed" in monitor.types_of(job_id), "the failure")

    task = monitor.state.tasks[job_id]
    assert task.state == "FAILURE"
    assert task.exception.startswith("JobFailed('numerical_error'")
    assert ast.literal_eval(task.kwargs)["tokens"] < 9


def test_prompts_and_outputs_are_in_no_event_and_no_log(
    running_mill: Mill, monitor: Monitor, reference: Callable[..., Any]
) -> None:
    word = reference("SECRET", 1)[1].strip()
    ids = [
        running_mill.submit("SECRET"),
        send(running_mill, {"job": {"prompt": "SECRET", "seed": 7}}),
        send(running_mill, {"job": {"prompt": "SECRET", "mistake": "SECRET"}}),
        send(running_mill, {"job": {"prompt": "SECRET <<refuse>>"}}),
    ]
    running_mill.wait_for(
        lambda: all(
            {"task-succeeded", "task-failed"} & set(monitor.types_of(task_id)) for task_id in ids
        ),
        "the events",
    )

    shown = json.dumps(monitor.events, default=str) + running_mill.workers[0].log
    shown += json.dumps(running_mill.celery.control.inspect(timeout=0.5).stats())
    assert "SECRET" not in shown
    assert word not in shown


def test_five_announcements_of_one_job_make_one_run(running_mill: Mill) -> None:
    job_id = running_mill.submit("once", max_tokens=60)
    (element,) = running_mill.store.client.lrange(keys.announced(QUEUE), 0, 0) or [
        announcement(job_id)
    ]
    for number in range(5):
        copy = json.loads(element)
        copy["properties"]["delivery_tag"] = f"{job_id}.copy{number}"
        running_mill.store.client.lpush(QUEUE, json.dumps(copy))

    (record,) = running_mill.wait_ended(job_id)
    running_mill.wait_for(lambda: running_mill.store.client.llen(QUEUE) == 0, "an empty queue")

    assert record.attempts == 1
    assert running_mill.computed(job_id) == list(range(60))


def test_high_priority_is_claimed_first(running_mill: Mill) -> None:
    filling = [running_mill.submit(f"fill {n}", max_tokens=500) for n in range(64)]
    running_mill.wait_for(
        lambda: all(running_mill.record(job_id).attempts for job_id in filling), "a full engine"
    )
    low = [running_mill.submit("low", priority="low", max_tokens=1) for _ in range(30)]
    high = running_mill.submit("high", priority="high", max_tokens=1)

    running_mill.wait_ended(high, *low, *filling)

    def started_at_ms(job_id: str) -> int:
        return running_mill.record(job_id).started_at_ms or 0

    earlier = [job_id for job_id in low if started_at_ms(job_id) < started_at_ms(high)]
    # One low job may be on its way when the high one comes, and one is claimed with the same pop.
    assert len(earlier) <= 2


def unannounced(mill: Mill, prompt: str) -> str:
    """Store a job without an announcement, and return its id."""
    new = prepare(GenerationJob(prompt=prompt, max_tokens=5, delay_s=3600), ProducerSettings())
    mill.store.submit(new)
    return new.job_id


def test_a_waiting_job_is_cancelled_without_a_run(running_mill: Mill) -> None:
    job_id = unannounced(running_mill, "never")

    running_mill.store.cancel(job_id)
    running_mill.store.client.lpush(QUEUE, announcement(job_id))
    after = running_mill.submit("after it")

    assert running_mill.wait_ended(after)[0].state is JobState.COMPLETED
    assert running_mill.state(job_id) is JobState.CANCELLED
    assert running_mill.computed(job_id) == []


def test_a_running_job_is_cancelled_and_keeps_its_output(
    running_mill: Mill, monitor: Monitor, reference: Callable[..., Any]
) -> None:
    job_id = running_mill.submit("stop me", max_tokens=ENDLESS)
    running_mill.wait_tokens(job_id, 10)

    running_mill.store.cancel(job_id)

    (record,) = running_mill.wait_ended(job_id, timeout_s=60)
    result = stored_result(record)
    num_tokens = result["usage"]["completion_tokens"]
    assert record.state is JobState.CANCELLED
    assert (result["status"], result["finish_reason"]) == ("cancelled", "abort")
    assert result["text"] == reference("stop me", num_tokens)[1]
    assert stored_error(record)["code"] == "cancelled"
    running_mill.wait_for(lambda: "task-revoked" in monitor.types_of(job_id), "the event")
    assert monitor.state.tasks[job_id].state == "REVOKED"


def test_a_cancelled_job_that_is_retried_continues_from_its_tokens(
    running_mill: Mill, reference: Callable[..., Any]
) -> None:
    with Client(running_mill.url) as client:
        job = client.submit(prompt="again", max_tokens=600, seed=7)
        running_mill.wait_tokens(job.id, 10)
        job.cancel()
        (cancelled,) = running_mill.wait_ended(job.id)
        num_tokens = len(running_mill.store.read_tokens(job.id))
        assert (cancelled.state, 10 <= num_tokens < 600) == (JobState.CANCELLED, True)

        assert job.retry() == 2
        running_mill.wait_tokens(job.id, num_tokens + 10)
        progress = job.progress()
        result = job.result(timeout_s=60)

    assert progress.output_tokens >= num_tokens + 10
    assert (progress.max_tokens, progress.eta_unknown) in ((600, None), (600, EtaUnknown.NO_SPEED))
    token_ids, text = reference("again", 600)
    assert (result.text, result.token_ids) == (text, token_ids)
    assert (result.attempt, result.metrics.resumed_tokens) == (2, num_tokens)


def test_revoking_a_running_task_cancels_its_job(running_mill: Mill, monitor: Monitor) -> None:
    job_id = running_mill.submit("revoke me", max_tokens=ENDLESS)
    running_mill.wait_tokens(job_id, 10)

    running_mill.celery.control.revoke(job_id, terminate=True)

    (record,) = running_mill.wait_ended(job_id, timeout_s=60)
    assert record.state is JobState.CANCELLED
    running_mill.wait_for(lambda: "task-revoked" in monitor.types_of(job_id), "the event")


def test_revoking_a_waiting_task_cancels_its_job(running_mill: Mill) -> None:
    job_id = unannounced(running_mill, "never")

    running_mill.celery.control.revoke(job_id, reply=True, timeout=60, limit=1)
    running_mill.store.client.lpush(QUEUE, announcement(job_id))

    (record,) = running_mill.wait_ended(job_id)
    assert record.state is JobState.CANCELLED
    assert running_mill.computed(job_id) == []


def test_a_deadline_stops_a_running_job(running_mill: Mill, monitor: Monitor) -> None:
    job_id = running_mill.submit("too late", max_tokens=ENDLESS, ttl_s=0.5)

    (record,) = running_mill.wait_ended(job_id, timeout_s=60)

    assert record.state is JobState.EXPIRED
    assert stored_error(record)["code"] == "deadline_exceeded"
    assert stored_result(record)["usage"]["completion_tokens"] > 0
    running_mill.wait_for(lambda: "task-revoked" in monitor.types_of(job_id), "the event")


def test_a_request_that_the_engine_refuses_fails_without_a_retry(
    running_mill: Mill, monitor: Monitor
) -> None:
    long = running_mill.submit("x" * 200_000)
    refused = running_mill.submit("<<refuse>>")

    records = running_mill.wait_ended(long, refused)

    errors = [stored_error(record) for record in records]
    assert [error["code"] for error in errors] == [
        "context_length_exceeded",
        "unsupported_parameter",
    ]
    assert [record.attempts for record in records] == [1, 1]
    running_mill.wait_for(lambda: "task-failed" in monitor.types_of(long), "the event")
    assert monitor.state.tasks[long].state == "FAILURE"


def test_a_request_that_fails_in_the_engine_spares_its_batch(running_mill: Mill) -> None:
    mate = running_mill.submit("mate", max_tokens=60)
    bad = running_mill.submit("<<error@4>>")

    (record, other) = running_mill.wait_ended(bad, mate)

    assert record.state is JobState.FAILED
    error = stored_error(record)
    assert (error["code"], error["retryable"]) == ("numerical_error", False)
    assert stored_result(record)["usage"]["completion_tokens"] == 4
    assert other.state is JobState.COMPLETED


def send(mill: Mill, kwargs: dict[str, Any], **options: Any) -> str:
    """Send a task as any Celery service does, and return its id."""
    sent = mill.celery.send_task(keys.TASK_NAME, kwargs=kwargs, queue=QUEUE, **options)
    return str(sent.id)


def test_a_plain_celery_task_gets_its_result_through_asyncresult(
    running_mill: Mill, reference: Callable[..., Any]
) -> None:
    sent = running_mill.celery.send_task(
        keys.TASK_NAME, kwargs={"job": {"prompt": "inline", "seed": 7, "max_tokens": 9}},
        queue=QUEUE,
    )  # fmt: skip

    result = sent.get(timeout=60)

    assert result["text"] == reference("inline", 9)[1]
    assert result["id"] == sent.id
    assert running_mill.state(sent.id) is JobState.COMPLETED


@pytest.mark.parametrize(
    ("kwargs", "why"),
    [
        ({"job": {"prompt": "x", "max_tokns": 3}}, "max_tokns"),
        ({"job": {"prompt": "x", "model": "other"}}, "batchmill.other.normal"),
        ({"job": {"prompt": "x"}, "v": 9}, "v is 9"),
        ({"jobs": {"prompt": "x"}}, "takes `job`"),
        (
            {"job": {"prompt": "x", "ttl_s": 5, "not_before": "2999-01-01T00:00:00Z"}},
            "the deadline passes before the job may run",
        ),
    ],
)
def test_a_plain_celery_task_that_cannot_be_run_fails_with_the_reason(
    running_mill: Mill, kwargs: dict[str, Any], why: str
) -> None:
    sent = running_mill.celery.send_task(keys.TASK_NAME, kwargs=kwargs, queue=QUEUE)

    with pytest.raises(Exception, match="invalid_request") as caught:
        sent.get(timeout=60)

    assert why in str(caught.value)


def test_a_celery_time_limit_ends_the_job(running_mill: Mill) -> None:
    sent = running_mill.celery.send_task(
        keys.TASK_NAME,
        kwargs={"job": {"prompt": "x", "max_tokens": ENDLESS}},
        queue=QUEUE,
        time_limit=1,
    )

    with pytest.raises(Exception, match="time_limit_exceeded"):
        sent.get(timeout=60)
    assert running_mill.state(sent.id) is JobState.FAILED
