"""Spans of a producer: `send` of one job, `create` of each of many, and the context they leave.

Without traces a job carries its caller's context as it is. With them it carries the context of its
span, whose parent is the caller's context or, without one, the application's current span.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from batchmill.producer.protocol.calls.new_job import NewJob

from .settings import TraceSettings
from .traceparent import TRACEPARENT, TraceContext, read_traceparent

#: What OpenTelemetry's conventions call the broker.
SYSTEM = "redis"


def check_traces(settings: TraceSettings) -> None:
    """Check that spans can be made, if they are asked for.

    Raises:
        TracesUnavailable: a package is missing, or a standard variable names what is unknown.
    """
    if settings.traces:
        _tracer()


def current_traceparent(settings: TraceSettings) -> str | None:
    """Return the context of the application's current span; None without traces or a span."""
    if not settings.traces:
        return None
    from opentelemetry import trace

    return traceparent_of(trace.get_current_span())


def environment_traceparent() -> str | None:
    """Return the context that the program was started with, in the variable `TRACEPARENT`."""
    return read_traceparent(os.environ.get(TRACEPARENT.upper()))


@contextmanager
def send_span(job: NewJob, settings: TraceSettings) -> Iterator[NewJob]:
    """Make the span of sending one job, for as long as that takes; yield the job to send.

    Raises:
        TracesUnavailable: as `check_traces`.
    """
    if not settings.traces:
        yield job
        return
    span = _start("send", job)
    try:
        yield _with_context(job, span)
    except Exception as error:
        fail_span(span, _error_type(error))
        raise
    finally:
        span.end()


def with_create_span(job: NewJob, settings: TraceSettings) -> NewJob:
    """Make the span of creating a job that is sent together with others; return the job to send.

    Raises:
        TracesUnavailable: as `check_traces`.
    """
    if not settings.traces:
        return job
    span = _start("create", job)
    span.end()
    return _with_context(job, span)


def parent_context(traceparent: object) -> Any:
    """Return OpenTelemetry's context of a remote span; None, the current context, without one."""
    from opentelemetry import trace

    known = TraceContext.read(traceparent)
    if known is None:
        return None
    remote = trace.SpanContext(
        known.trace_id, known.span_id, is_remote=True, trace_flags=trace.TraceFlags(known.flags)
    )
    return trace.set_span_in_context(trace.NonRecordingSpan(remote))


def traceparent_of(span: Any) -> str | None:
    """Return the context of a span; None if it is not valid."""
    found = span.get_span_context()
    if not found.is_valid:
        return None
    return str(TraceContext(found.trace_id, found.span_id, int(found.trace_flags)))


def message_attributes(operation: str, queue: str, job_id: str) -> dict[str, Any]:
    """Return OpenTelemetry's attributes of an operation on the message of a job."""
    return {
        "messaging.system": SYSTEM,
        "messaging.operation.name": operation,
        "messaging.operation.type": operation,
        "messaging.destination.name": queue,
        "messaging.message.id": job_id,
    }


def fail_span(span: Any, error_type: str) -> None:
    """Mark a span as failed, with a name for the kind of error and never its message."""
    from opentelemetry.trace import Status, StatusCode

    span.set_attribute("error.type", error_type)
    span.set_status(Status(StatusCode.ERROR, error_type))


def _start(operation: str, job: NewJob) -> Any:
    from opentelemetry.trace import SpanKind

    attributes = message_attributes(operation, job.queue, job.job_id)
    attributes["gen_ai.request.model"] = job.model
    if job.batch is not None:
        attributes["batchmill.batch.id"] = job.batch.batch_id
    return _tracer().start_span(
        f"{operation} {job.queue}",
        context=parent_context(job.traceparent),
        kind=SpanKind.PRODUCER,
        attributes=attributes,
    )


def _with_context(job: NewJob, span: Any) -> NewJob:
    # An application may have set OpenTelemetry up without a provider; then its spans have no ids.
    return replace(job, traceparent=traceparent_of(span) or job.traceparent)


def _error_type(error: Exception) -> str:
    code = getattr(error, "code", None)
    return code if isinstance(code, str) else type(error).__name__


def _tracer() -> Any:
    from .provider import producer_tracer

    return producer_tracer()
