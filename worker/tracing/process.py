"""Sets OpenTelemetry up for a process that is ours: a worker, a deliverer, a gateway, a command."""

from __future__ import annotations

from typing import Any

from batchmill.producer.tracing.settings import TraceSettings


def start_tracing(settings: TraceSettings, service: str, **options: Any) -> Any:
    """Make the provider of this process' spans, if they are asked for, and return its tracer.

    It is OpenTelemetry's global provider from then on, unless the program that runs us has set one.
    What waits for its export at the end of the process is exported then.

    Args:
        settings: whether there are spans.
        service: name of the service, unless `OTEL_SERVICE_NAME` gives another.
        **options: as of `new_provider`.

    Returns:
        The tracer; None without spans.

    Raises:
        TracesUnavailable: a package is missing, or a standard variable names what is unknown.
    """
    if not settings.traces:
        return None
    from batchmill.producer.tracing.provider import new_provider, tracer_of

    provider = new_provider(service, **options)
    from opentelemetry import trace

    if isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        trace.set_tracer_provider(provider)
    return tracer_of(provider)
