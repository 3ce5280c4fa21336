"""The spans of one attempt of a job: `process`, with `queue`, `prefill`, `checkpoint`, `decode`.

A step of the engine computes many jobs at once, so no span is current while it runs: times are
noted, and spans are made of them afterwards. Parts are exported as soon as they are over, so that
those of an attempt whose worker is killed are known. Nothing of a prompt or an output is in them.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

import structlog
from opentelemetry.trace import Link, SpanContext, SpanKind, TraceFlags, set_span_in_context

from batchmill.producer.job.document import GenerationJob
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.attempts import Attempt, AttemptCause
from batchmill.producer.protocol.replies import Claim, JobState, ReleaseCause
from batchmill.producer.tracing.sending import fail_span, message_attributes, parent_context
from batchmill.producer.tracing.settings import TraceSettings
from batchmill.producer.tracing.traceparent import TraceContext
from batchmill.worker.engine_host.messages import Finished
from batchmill.worker.jobs.attempt_trace import NO_TRACE, AttemptTrace, TracedJob
from batchmill.worker.jobs.outcome import Outcome

from .process import start_tracing
from .span_ids import ChosenIds, span_id_of_attempt, trace_id_of_job

_log = structlog.stdlib.get_logger("batchmill.attempt_spans")
_Method = TypeVar("_Method", bound=Callable[..., Any])
#: Attempts with these ends had no worker left that could write their span.
_LOST = (AttemptCause.WORKER_LOST, AttemptCause.LEASE_EXPIRED)
#: The first checkpoints have a span each, and then those whose number is a power of two.
_FIRST_CHECKPOINTS = 8
_RELEASES = {cause.value for cause in ReleaseCause}
_NS_PER_MS = 1_000_000
_NS_PER_S = 1_000_000_000
_SAMPLING = ("temperature", "top_p", "top_k", "frequency_penalty", "presence_penalty", "seed")


def _harmless(method: _Method) -> _Method:
    """Let no error of a trace reach the job: it is logged, and the span is missing."""

    @functools.wraps(method)
    def call(*args: Any) -> Any:
        try:
            return method(*args)
        except Exception:
            _log.exception("trace_failed")
            return NO_TRACE

    return cast("_Method", call)


class OtelTraces:
    """Makes the spans of attempts. Thread-safe."""

    def __init__(self, tracer: Any, ids: ChosenIds, *, model: str, worker: str) -> None:
        """Bind to a tracer whose provider takes its ids from `ids`.

        Args:
            tracer: OpenTelemetry's.
            ids: chooses the ids of attempts.
            model: served name.
            worker: name of the worker, as records have it.
        """
        self._tracer = tracer
        self._ids = ids
        self._model = model
        self._worker = worker

    @classmethod
    def from_settings(cls, settings: TraceSettings, *, model: str, worker: str) -> OtelTraces:
        """Set OpenTelemetry up for this process, and make the spans of its attempts.

        Raises:
            TracesUnavailable: as `start_tracing`.
        """
        ids = ChosenIds()
        tracer = start_tracing(settings, "batchmill-worker", id_generator=ids)
        return cls(tracer, ids, model=model, worker=worker)

    @_harmless
    def start(self, claim: Claim, document: GenerationJob | None) -> AttemptTrace:
        """Begin the span of an attempt, and write those of attempts that were lost before it."""
        clock = _Clock(claim.claimed_at_ms)
        priority = "normal" if document is None else document.priority
        shared = {
            **message_attributes("process", keys.queue_name(self._model, priority), claim.job_id),
            "gen_ai.provider.name": "batchmill",
            "gen_ai.request.model": self._model,
        }
        for lost in lost_attempts(claim.history):
            self._write_lost(claim, lost, shared, clock)
        own = Attempt(claim.attempts, self._worker, claim.made_at_ms)
        attributes = shared | _attempt_attributes(own, len(claim.token_ids))
        if document is not None:
            attributes |= request_attributes(document)
        span = self._start(claim, own, attributes, clock.now_ns)
        return _AttemptSpans(self._tracer, span, claim, clock)

    def _write_lost(
        self, claim: Claim, lost: Attempt, shared: Mapping[str, Any], clock: _Clock
    ) -> None:
        """Write the span of an attempt whose worker was lost."""
        assert lost.claimed_at_ms is not None
        assert lost.ended_at_ms is not None
        attributes = {**shared, **_attempt_attributes(lost, lost.tokens_at_claim or 0)}
        attributes["batchmill.attempt.output_tokens"] = lost.tokens_at_end or 0
        attributes["batchmill.attempt.cause"] = str(lost.cause)
        attributes["batchmill.attempt.reported_by"] = self._worker
        span = self._start(claim, lost, attributes, clock.local_ns(lost.claimed_at_ms))
        fail_span(span, str(lost.cause))
        span.end(clock.local_ns(lost.ended_at_ms))

    def _start(
        self, claim: Claim, attempt: Attempt, attributes: Mapping[str, Any], start_ns: int
    ) -> Any:
        sender = TraceContext.read(claim.traceparent)
        trace_id = _trace_id(claim)
        links = [] if sender is None else [_link(sender.trace_id, sender.span_id, sender.flags)]
        earlier = [each for each in claim.history if each.attempt and each.claimed_at_ms]
        before = [each for each in earlier if (each.attempt or 0) < (attempt.attempt or 0)]
        if before:
            links.append(_link(trace_id, _span_id(trace_id, claim.job_id, before[-1])))
        with self._ids.choose(trace_id, _span_id(trace_id, claim.job_id, attempt)):
            return self._tracer.start_span(
                f"process {attributes['messaging.destination.name']}",
                context=parent_context(claim.traceparent),
                kind=SpanKind.CONSUMER,
                attributes=attributes,
                links=links,
                start_time=start_ns,
            )


class _AttemptSpans:
    """The spans of one attempt of this worker."""

    def __init__(self, tracer: Any, span: Any, claim: Claim, clock: _Clock) -> None:
        self._tracer = tracer
        self._span = span
        self._claim = claim
        self._clock = clock
        self._num_checkpoints = 0
        self._has_prefill = False
        self._generated_at: float | None = None
        self.trace_id: str | None = f"{_trace_id(claim):032x}"

    @_harmless
    def saved(self, job: TracedJob, num_tokens: int, start: float) -> None:
        """Write the span of a checkpoint; before the first one, those of what it waited for."""
        if not self._span.is_recording():
            return
        self._write_prefill(job)
        self._num_checkpoints = number = self._num_checkpoints + 1
        if number > _FIRST_CHECKPOINTS and number & (number - 1):
            return
        attributes = {
            "batchmill.checkpoint.number": number,
            "batchmill.checkpoint.tokens": num_tokens,
        }
        self._write("checkpoint", self._clock.wall_ns(start), time.time_ns(), attributes)

    @_harmless
    def finished(self, job: TracedJob, finished: Finished) -> None:
        """Add what the engine has counted."""
        self._generated_at = time.monotonic()
        reasons = [each.finish_reason for each in finished.samples] or [finished.finish_reason]
        self._span.set_attributes(
            {
                "gen_ai.response.id": self._claim.job_id,
                "gen_ai.response.finish_reasons": reasons,
                "gen_ai.usage.input_tokens": finished.num_prompt_tokens,
                "gen_ai.usage.output_tokens": finished.num_output_tokens,
                "gen_ai.usage.cache_read.input_tokens": finished.num_cached_tokens,
                "batchmill.attempt.preemptions": finished.num_preemptions,
            }
        )
        if finished.queued_s is not None:
            self._span.set_attribute("batchmill.attempt.engine_wait_s", finished.queued_s)

    @_harmless
    def end(self, job: TracedJob, outcome: Outcome) -> None:
        """Write the remaining spans, that of the attempt last."""
        if not self._span.is_recording():
            return
        end_ns = time.time_ns()
        self._write_prefill(job)
        if job.first_token_at is not None:
            until = self._generated_at
            attributes = {
                "batchmill.decode.tokens": len(job.token_ids) - len(self._claim.token_ids),
                "batchmill.decode.checkpoints": self._num_checkpoints,
            }
            stop_ns = end_ns if until is None else self._clock.wall_ns(until)
            self._write("decode", self._clock.wall_ns(job.first_token_at), stop_ns, attributes)
        self._span.set_attribute("batchmill.attempt.output_tokens", len(job.token_ids))
        self._set_outcome(outcome)
        self._span.end(end_ns)

    def _set_outcome(self, outcome: Outcome) -> None:
        code = None if outcome.error is None else outcome.error[0]
        if outcome.state is None:
            cause, code = "not_ours", "not_ours"
        elif outcome.state is JobState.QUEUED:
            cause = code if code in _RELEASES and code is not None else JobState.FAILED.value
        else:
            cause = outcome.state.value
        self._span.set_attribute("batchmill.attempt.cause", cause)
        if code is not None and code not in (ReleaseCause.DRAIN.value, "cancelled"):
            fail_span(self._span, code)

    def _write_prefill(self, job: TracedJob) -> None:
        """Write the spans of the time until the first token, once there is one, or at the end."""
        if self._has_prefill:
            return
        self._has_prefill = True
        claim, clock = self._claim, self._clock
        since_ms = max([claim.enqueued_at_ms, *(each.ended_at_ms or 0 for each in claim.history)])
        self._write("queue", clock.local_ns(since_ms), clock.now_ns, {})
        if job.first_token_at is not None:
            resumed = {"batchmill.prefill.resumed_tokens": len(claim.token_ids)}
            self._write("prefill", clock.now_ns, clock.wall_ns(job.first_token_at), resumed)

    def _write(self, name: str, start_ns: int, end_ns: int, attributes: Mapping[str, Any]) -> None:
        parent = set_span_in_context(self._span)
        span = self._tracer.start_span(
            name, context=parent, attributes=attributes, start_time=start_ns
        )
        span.end(max(start_ns, end_ns))


class _Clock:
    """Turns times of Redis and of `time.monotonic()` into this machine's time, in nanoseconds."""

    def __init__(self, redis_ms: int) -> None:
        """Note that it is now `redis_ms` by Redis' clock."""
        self._redis_ms = redis_ms
        self._monotonic = time.monotonic()
        self.now_ns = time.time_ns()

    def wall_ns(self, monotonic: float) -> int:
        return self.now_ns + round((monotonic - self._monotonic) * _NS_PER_S)

    def local_ns(self, redis_ms: int) -> int:
        return self.now_ns + (redis_ms - self._redis_ms) * _NS_PER_MS


def lost_attempts(history: tuple[Attempt, ...]) -> list[Attempt]:
    """Return the attempts, since a worker last ended one in an orderly way, that were lost.

    The worker that began after a loss may be lost as well before it has exported a span, so all of
    a row are written again, each under its own id.
    """
    lost: list[Attempt] = []
    for attempt in reversed(history):
        if attempt.cause not in _LOST or None in (attempt.claimed_at_ms, attempt.ended_at_ms):
            break
        lost.insert(0, attempt)
    return lost


def request_attributes(document: GenerationJob) -> dict[str, Any]:
    """Return OpenTelemetry's attributes of a request to a model, without any of its content."""
    chosen = document.model_dump(include=set(_SAMPLING))
    attributes: dict[str, Any] = {
        "gen_ai.operation.name": "text_completion" if document.messages is None else "chat",
        "gen_ai.output.type": "json" if document.response_format is not None else "text",
        "batchmill.tenant": document.tenant or keys.DEFAULT_TENANT,
    }
    attributes |= {f"gen_ai.request.{name}": chosen.get(name) for name in _SAMPLING}
    attributes["gen_ai.request.max_tokens"] = document.max_tokens
    if document.n not in (None, 1):
        attributes["gen_ai.request.choice.count"] = document.n
    return {name: value for name, value in attributes.items() if value is not None}


def _attempt_attributes(attempt: Attempt, num_resumed: int) -> dict[str, Any]:
    return {
        "batchmill.attempt": attempt.attempt or 0,
        "batchmill.worker": attempt.worker,
        "batchmill.attempt.resumed_tokens": num_resumed,
    }


def _trace_id(claim: Claim) -> int:
    sender = TraceContext.read(claim.traceparent)
    if sender is not None:
        return sender.trace_id
    return trace_id_of_job(claim.job_id, claim.enqueued_at_ms)


def _span_id(trace_id: int, job_id: str, attempt: Attempt) -> int:
    return span_id_of_attempt(trace_id, job_id, attempt.attempt or 0, attempt.claimed_at_ms or 0)


def _link(trace_id: int, span_id: int, flags: int = 1) -> Link:
    return Link(SpanContext(trace_id, span_id, is_remote=True, trace_flags=TraceFlags(flags)))
