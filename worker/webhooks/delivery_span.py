"""The span of one attempt to send a webhook, and the `traceparent` that the attempt carries."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from batchmill.producer.protocol.outbox import OutboxEntry
from batchmill.producer.tracing.sending import fail_span, parent_context, traceparent_of
from batchmill.producer.tracing.traceparent import TRACEPARENT, read_traceparent

from .sender import SendOutcome

_DEFAULT_PORTS = {"https": 443, "http": 80}


class DeliverySpan:
    """The span of one attempt; without a tracer it only passes the context of the job on."""

    def __init__(self, tracer: Any, entry: OutboxEntry) -> None:
        """Begin the attempt.

        Args:
            tracer: OpenTelemetry's; None makes no span.
            entry: the event.
        """
        self._span: Any = None if tracer is None else _start(tracer, entry)
        self._traceparent = read_traceparent(entry.traceparent)

    def headers(self) -> dict[str, str]:
        """Return the headers that the receiver continues the trace by."""
        own = None if self._span is None else traceparent_of(self._span)
        context = own or self._traceparent
        return {} if context is None else {TRACEPARENT: context}

    def end(self, outcome: SendOutcome | None) -> None:
        """Note how the attempt went; None if nothing was sent."""
        if self._span is None:
            return
        if outcome is None:
            fail_span(self._span, "event_not_read")
        else:
            if outcome.status is not None:
                self._span.set_attribute("http.response.status_code", outcome.status)
            if not outcome.delivered:
                fail_span(self._span, str(outcome.status or outcome.error))
        self._span.end()


def _start(tracer: Any, entry: OutboxEntry) -> Any:
    from opentelemetry.trace import SpanKind

    attributes: dict[str, Any] = {
        "http.request.method": "POST",
        "batchmill.webhook.event": entry.type,
        "batchmill.webhook.id": entry.event_id,
        "batchmill.webhook.attempt": entry.attempt,
        "batchmill.job.id": entry.job_id,
    }
    try:
        # Not the path and the query: they may hold secrets.
        parts = urlsplit(entry.url)
        attributes["server.address"] = parts.hostname or ""
        attributes["server.port"] = parts.port or _DEFAULT_PORTS.get(parts.scheme, 443)
    except ValueError:
        pass  # a forged URL, which the sender refuses
    if entry.attempt > 1:
        attributes["http.request.resend_count"] = entry.attempt - 1
    return tracer.start_span(
        "POST",
        context=parent_context(entry.traceparent),
        kind=SpanKind.CLIENT,
        attributes=attributes,
    )
