"""OpenTelemetry's tracer of this process. Nobody imports this file unless traces are on."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from batchmill.producer.errors import TracesUnavailable
from batchmill.producer.install_hint import install_command

_EXPORTERS = "OTEL_TRACES_EXPORTER"
_NAME = "batchmill"


def new_provider(service: str, **options: Any) -> Any:
    """Return a provider of tracers that exports as the `OTEL_*` variables say.

    Args:
        service: name of the service, unless `OTEL_SERVICE_NAME` gives another.
        **options: further arguments of OpenTelemetry's `TracerProvider`.

    Raises:
        TracesUnavailable: a package is missing, or the variables name an unknown exporter.
    """
    try:
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ModuleNotFoundError as error:
        raise _unavailable(error) from None
    resource = Resource.create()
    if not os.environ.get("OTEL_SERVICE_NAME") and "service.name=" not in os.environ.get(
        "OTEL_RESOURCE_ATTRIBUTES", ""
    ):
        resource = resource.merge(Resource({SERVICE_NAME: service}))
    provider = TracerProvider(resource=resource, **options)
    exporter = _exporter()
    if exporter is not None:
        provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider


@cache
def producer_tracer() -> Any:
    """Return the tracer of a producer: the application's own, if it has set OpenTelemetry up.

    Otherwise one that exports as the `OTEL_*` variables say. OpenTelemetry's global provider is
    left as it is: it belongs to the application.

    Raises:
        TracesUnavailable: as `new_provider`.
    """
    try:
        from opentelemetry import trace
    except ModuleNotFoundError as error:
        raise _unavailable(error) from None
    provider: Any = trace.get_tracer_provider()
    if isinstance(provider, trace.ProxyTracerProvider):
        provider = new_provider(f"{_NAME}-producer")
    return tracer_of(provider)


def tracer_of(provider: Any) -> Any:
    """Return batchmill's tracer of a provider."""
    try:
        number = version(_NAME)
    except PackageNotFoundError:  # run from a checkout that is not installed
        number = "0"
    return provider.get_tracer(_NAME, number)


def _exporter() -> Any:
    name = (os.environ.get(_EXPORTERS) or "otlp").strip().lower()
    makers: dict[str, Callable[[], Any]] = {
        "otlp": _otlp,
        "console": _console,
        "none": lambda: None,
    }
    if name not in makers:
        raise TracesUnavailable(
            f"{_EXPORTERS} is {name[:100]!r}, but must be one of {', '.join(makers)}"
        )
    return makers[name]()


def _otlp() -> Any:
    variables = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
    protocol = next((os.environ[name] for name in variables if os.environ.get(name)), None)
    if protocol not in (None, "http/protobuf"):
        raise TracesUnavailable(
            f"the OTLP protocol is {protocol[:100]!r}; batchmill sends http/protobuf only: set "
            "OTEL_EXPORTER_OTLP_PROTOCOL to it, and the endpoint's port to the collector's HTTP "
            "port, mostly 4318"
        )
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ModuleNotFoundError as error:
        raise _unavailable(error) from None
    return OTLPSpanExporter()


def _console() -> Any:
    from opentelemetry.sdk.trace.export import ConsoleSpanExporter

    return ConsoleSpanExporter()


def _unavailable(error: ModuleNotFoundError) -> TracesUnavailable:
    return TracesUnavailable(
        f"BATCHMILL_TRACES is on, but {error.name} is not installed; add it: "
        f"{install_command('traces')}"
    )
