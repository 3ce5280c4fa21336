"""Spans of attempts, collected in memory: lost attempts, jobs without a trace, what is left out."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from batchmill.producer.job.validation import parse_job
from batchmill.producer.protocol.attempts import Attempt
from batchmill.producer.protocol.replies import Claim, JobState
from batchmill.worker.engine_host.messages import AddRequest, Finished
from batchmill.worker.jobs.active_job import ActiveJob
from batchmill.worker.jobs.outcome import NOT_OURS, Outcome
from batchmill.worker.tracing.attempt_spans import OtelTraces, lost_attempts
from batchmill.worker.tracing.span_ids import ChosenIds

from ..celery_tasks import a_task

CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
DOCUMENT = parse_job(
    {
        "messages": [{"role": "user", "content": "a secret"}],
        "stop": ["a secret stop"],
        "max_tokens": 20,
        "temperature": 0.5,
        "seed": 3,
        "n": 2,
    }
)
START_MS = 1_700_000_000_000


class Traced:
    """A worker's traces, with spans that stay in memory."""

    def __init__(self) -> None:
        ids = ChosenIds()
        self._memory = InMemorySpanExporter()
        self._provider = TracerProvider(id_generator=ids, shutdown_on_exit=False)
        self._provider.add_span_processor(SimpleSpanProcessor(self._memory))
        self.traces = OtelTraces(
            self._provider.get_tracer("test"), ids, model="demo", worker="w@test"
        )

    @property
    def spans(self) -> list[Any]:
        return list(self._memory.get_finished_spans())

    def named(self, name: str) -> list[Any]:
        return [span for span in self.spans if span.name == name]

    def start(self, claim: Claim) -> ActiveJob:
        job = ActiveJob(claim, AddRequest(claim.job_id, None, None, {}), a_task(claim.job_id))
        job.trace = self.traces.start(claim, DOCUMENT)
        return job

    def close(self) -> None:
        self._provider.shutdown()


@pytest.fixture
def traced() -> Iterator[Traced]:
    traced = Traced()
    yield traced
    traced.close()


def claim_of(attempts: int = 1, *history: Attempt, **fields: Any) -> Claim:
    return Claim(
        job_id="gen_1",
        fence=f"{attempts}.x",
        document=b"{}",
        attempts=attempts,
        alone=False,
        deadline_at_ms=None,
        enqueued_at_ms=START_MS,
        started_at_ms=START_MS,
        claimed_at_ms=START_MS + 1000 * attempts,
        made_at_ms=START_MS + 1000 * attempts,
        history=history,
        **{"token_ids": [], "traceparent": CALLER, **fields},
    )


def attempt_of(number: int, cause: str) -> Attempt:
    claimed_ms = START_MS + 1000 * number
    return Attempt(number, f"w{number}", claimed_ms, claimed_ms + 500, 0, 8, cause)


def run(job: ActiveJob, outcome: Outcome, num_checkpoints: int = 1) -> None:
    for _ in range(num_checkpoints):
        job.receive([1, 2, 3], "text")
        job.trace.saved(job, 3, time.monotonic())
    job.trace.finished(job, Finished("r", "text", [1, 2, 3], "stop", 7, num_cached_tokens=4))
    job.trace.end(job, outcome)


def test_an_attempt_is_a_process_span_with_its_parts(traced: Traced) -> None:
    job = traced.start(claim_of())
    run(job, Outcome(JobState.COMPLETED))
    (span,) = traced.named("process batchmill.demo.normal")
    assert f"00-{span.parent.trace_id:032x}-{span.parent.span_id:016x}-01" == CALLER
    assert [link.context.span_id for link in span.links] == [span.parent.span_id]
    assert span.kind is trace.SpanKind.CONSUMER
    parts = [each for each in traced.spans if each is not span]
    assert [each.name for each in parts] == ["queue", "prefill", "checkpoint", "decode"]
    assert {each.parent.span_id for each in parts} == {span.context.span_id}
    queue = parts[0]
    assert queue.end_time - queue.start_time == 1_000_000_000


def test_an_attempt_has_the_attributes_of_the_conventions_and_no_content(traced: Traced) -> None:
    run(traced.start(claim_of()), Outcome(JobState.COMPLETED))
    (span,) = traced.named("process batchmill.demo.normal")
    expected = {
        "messaging.system": "redis",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.destination.name": "batchmill.demo.normal",
        "messaging.message.id": "gen_1",
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "batchmill",
        "gen_ai.output.type": "text",
        "gen_ai.request.model": "demo",
        "gen_ai.request.max_tokens": 20,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.seed": 3,
        "gen_ai.request.choice.count": 2,
        "gen_ai.response.id": "gen_1",
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": 7,
        "gen_ai.usage.output_tokens": 3,
        "gen_ai.usage.cache_read.input_tokens": 4,
        "batchmill.attempt": 1,
        "batchmill.attempt.cause": "completed",
        "batchmill.attempt.output_tokens": 3,
        "batchmill.worker": "w@test",
        "batchmill.tenant": "default",
    }
    assert expected.items() <= span.attributes.items()
    assert "secret" not in "".join(each.to_json() for each in traced.spans)


def test_a_lost_attempt_is_written_by_the_next_worker_under_the_id_of_its_parts(
    traced: Traced,
) -> None:
    killed = traced.start(claim_of())
    killed.receive([1, 2, 3], "")
    killed.trace.saved(killed, 3, time.monotonic())
    orphans = {span.parent.span_id for span in traced.spans}
    run(
        traced.start(claim_of(2, attempt_of(1, "worker_lost"), token_ids=[1, 2, 3])),
        Outcome(JobState.COMPLETED),
    )
    lost, own = traced.named("process batchmill.demo.normal")
    assert orphans == {lost.context.span_id}
    assert lost.attributes["error.type"] == "worker_lost"
    assert lost.attributes["batchmill.worker"] == "w1"
    assert lost.attributes["batchmill.attempt.reported_by"] == "w@test"
    assert lost.end_time - lost.start_time == 500_000_000
    assert own.links[-1].context.span_id == lost.context.span_id
    assert own.attributes["batchmill.attempt.resumed_tokens"] == 3


def test_all_attempts_lost_in_a_row_are_written_again_under_the_same_ids(traced: Traced) -> None:
    first, second = attempt_of(1, "worker_lost"), attempt_of(2, "lease_expired")
    traced.start(claim_of(2, first))
    traced.start(claim_of(3, first, second))
    ids = [span.context.span_id for span in traced.named("process batchmill.demo.normal")]
    assert len(ids) == 3
    assert len(set(ids)) == 2


def test_only_the_attempts_lost_since_the_last_orderly_end_are_written() -> None:
    causes = ("worker_lost", "drain", "worker_lost", "lease_expired")
    history = tuple(attempt_of(number, cause) for number, cause in enumerate(causes, 1))
    assert [each.attempt for each in lost_attempts(history)] == [3, 4]
    forged = Attempt(None, "w", None, None, None, None, "worker_lost")
    assert lost_attempts((*history, forged)) == []


@pytest.mark.parametrize("traceparent", [None, "damaged", "\xff" * 400])
def test_a_job_without_a_valid_trace_has_one_of_its_own(
    traced: Traced, traceparent: str | None
) -> None:
    history = attempt_of(1, "worker_lost")
    run(traced.start(claim_of(traceparent=traceparent)), NOT_OURS)
    run(traced.start(claim_of(2, history, traceparent=traceparent)), Outcome(JobState.COMPLETED))
    assert len({span.context.trace_id for span in traced.spans}) == 1
    assert all(span.parent is None for span in traced.named("process batchmill.demo.normal"))


@pytest.mark.parametrize(
    ("outcome", "cause", "error"),
    [
        (Outcome(JobState.FAILED, error=("numerical_error", "m")), "failed", "numerical_error"),
        (
            Outcome(JobState.EXPIRED, error=("deadline_exceeded", "m")),
            "expired",
            "deadline_exceeded",
        ),
        (Outcome(JobState.CANCELLED, error=("cancelled", "m")), "cancelled", None),
        (Outcome(JobState.QUEUED, error=("drain", "m")), "drain", None),
        (Outcome(JobState.QUEUED, error=("engine_death", "m")), "engine_death", "engine_death"),
        (Outcome(JobState.QUEUED, error=("out_of_memory", "m")), "failed", "out_of_memory"),
        (NOT_OURS, "not_ours", "not_ours"),
    ],
)
def test_the_end_of_an_attempt_says_why(
    traced: Traced, outcome: Outcome, cause: str, error: str | None
) -> None:
    job = traced.start(claim_of())
    job.trace.end(job, outcome)
    (span,) = traced.named("process batchmill.demo.normal")
    assert span.attributes["batchmill.attempt.cause"] == cause
    assert span.attributes.get("error.type") == error
    assert (span.status.status_code is trace.StatusCode.ERROR) == (error is not None)
    assert not traced.named("prefill")


def test_a_long_job_has_few_spans_of_checkpoints(traced: Traced) -> None:
    job = traced.start(claim_of())
    run(job, Outcome(JobState.COMPLETED), num_checkpoints=100)
    numbers = [
        span.attributes["batchmill.checkpoint.number"] for span in traced.named("checkpoint")
    ]
    assert numbers == [*range(1, 9), 16, 32, 64]
    (decode,) = traced.named("decode")
    assert decode.attributes["batchmill.decode.checkpoints"] == 100


def test_an_unsampled_job_has_no_spans_and_its_log_names_its_trace(traced: Traced) -> None:
    job = traced.start(claim_of(traceparent=CALLER[:-2] + "00"))
    run(job, Outcome(JobState.COMPLETED))
    assert traced.spans == []
    assert job.log_ids == {"job_id": "gen_1", "trace_id": CALLER.split("-")[1]}
    assert json.dumps(job.log_ids)


def test_an_error_in_a_trace_does_not_reach_the_job(
    traced: Traced, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("a bug")

    job = traced.start(claim_of())
    monkeypatch.setattr(traced.traces._tracer, "start_span", fail)
    run(job, Outcome(JobState.COMPLETED))
    assert traced.start(claim_of(2)).trace.trace_id is None
