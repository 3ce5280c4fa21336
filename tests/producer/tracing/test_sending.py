"""Spans of producers, collected in memory: their names, parents, attributes and errors."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from batchmill.producer import AsyncClient, Client, QueueFull, TracesUnavailable
from batchmill.producer.protocol import keys
from batchmill.producer.settings import ProducerSettings
from batchmill.producer.tracing import provider

TRACED = ProducerSettings(traces=True)
CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """An application that has set OpenTelemetry up, with spans that stay in memory."""
    exporter = InMemorySpanExporter()
    application = TracerProvider(shutdown_on_exit=False)
    application.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: application)
    provider.producer_tracer.cache_clear()
    yield exporter
    provider.producer_tracer.cache_clear()
    application.shutdown()


@contextmanager
def current_span(memory: InMemorySpanExporter) -> Iterator[Any]:
    """Run in a span of the application, which is not among those that the test looks at."""
    with trace.get_tracer_provider().get_tracer("app").start_as_current_span("request") as span:
        yield span.get_span_context()


def stored_context(client: Client, job_id: str) -> str:
    value: Any = client._shards.first.client.hget(keys.job(job_id), "traceparent")
    return "" if value is None else value.decode()


def context_of(span: Any) -> str:
    found = span.get_span_context()
    return f"00-{found.trace_id:032x}-{found.span_id:016x}-{int(found.trace_flags):02x}"


def test_a_submission_is_a_send_span_whose_context_the_record_keeps(
    redis_url: str, memory: InMemorySpanExporter
) -> None:
    with Client(redis_url, settings=TRACED) as client, current_span(memory) as request:
        job = client.submit("a secret prompt", max_tokens=3)
        stored = stored_context(client, job.id)
    span = next(each for each in memory.get_finished_spans() if each.name != "request")
    assert span.name == "send batchmill.demo.normal"
    assert span.kind is trace.SpanKind.PRODUCER
    assert span.parent is not None
    assert span.parent.span_id == request.span_id
    assert stored == context_of(span)
    assert dict(span.attributes or {}) == {
        "messaging.system": "redis",
        "messaging.operation.name": "send",
        "messaging.operation.type": "send",
        "messaging.destination.name": "batchmill.demo.normal",
        "messaging.message.id": job.id,
        "gen_ai.request.model": "demo",
    }


async def _submit(url: str) -> None:
    async with AsyncClient(url, settings=TRACED) as client:
        await client.submit("hi", traceparent=CALLER)


def test_a_given_context_is_the_parent(redis_url: str, memory: InMemorySpanExporter) -> None:
    import asyncio

    asyncio.run(_submit(redis_url))
    (span,) = memory.get_finished_spans()
    assert span.parent is not None
    assert span.parent.is_remote
    assert f"00-{span.parent.trace_id:032x}-{span.parent.span_id:016x}-01" == CALLER


def test_each_job_of_many_has_a_create_span(redis_url: str, memory: InMemorySpanExporter) -> None:
    with Client(redis_url, settings=TRACED) as client:
        jobs = client.submit_many(["one", {"prompt": "two", "traceparent": CALLER}])
        batch = client.create_batch(["three"])
        stored = [stored_context(client, job.id) for job in jobs]
    spans = memory.get_finished_spans()
    assert [span.name for span in spans] == ["create batchmill.demo.normal"] * 3
    assert [context_of(span) for span in spans[:2]] == stored
    assert spans[1].parent is not None
    attributes = spans[2].attributes or {}
    assert attributes["batchmill.batch.id"] == batch.id


def test_a_refused_job_fails_its_span_without_its_message(
    redis_url: str, memory: InMemorySpanExporter
) -> None:
    settings = ProducerSettings(traces=True, max_queued_jobs=1)
    with Client(redis_url, settings=settings) as client:
        client.submit("one")
        with pytest.raises(QueueFull):
            client.submit("two")
    refused = memory.get_finished_spans()[1]
    assert refused.status.status_code is trace.StatusCode.ERROR
    assert (refused.attributes or {})["error.type"] == "queue_full"
    assert not refused.events


def test_an_unsampled_context_stays_unsampled(redis_url: str, memory: InMemorySpanExporter) -> None:
    with Client(redis_url, settings=TRACED) as client:
        job = client.submit("hi", traceparent=CALLER[:-2] + "00")
        stored = stored_context(client, job.id)
    assert memory.get_finished_spans() == ()
    assert stored.startswith(CALLER[:35])
    assert stored.endswith("-00")


def test_without_traces_the_given_context_is_stored_as_it_is(redis_url: str) -> None:
    with Client(redis_url) as client:
        job = client.submit("hi", traceparent=CALLER)
        assert stored_context(client, job.id) == CALLER
        assert stored_context(client, client.submit("hi").id) == ""
        assert stored_context(client, client.submit("hi", traceparent="damaged").id) == ""


def test_a_client_without_traces_imports_no_opentelemetry(redis_url: str) -> None:
    # redis-py imports its metrics if they are installed, so here they are not.
    program = (
        "import sys\n"
        "sys.modules['opentelemetry'] = None\n"
        "from batchmill.producer import Client\n"
        f"with Client({redis_url!r}) as client:\n"
        f"    job = client.submit('hi', traceparent={CALLER!r})\n"
        "    client.submit_many(['one']); client.create_batch(['two'])\n"
        "print(job.id)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    with Client(redis_url) as client:
        assert stored_context(client, done.stdout.decode().strip()) == CALLER


@pytest.mark.parametrize(
    ("variable", "value"),
    [("OTEL_TRACES_EXPORTER", "zipkin"), ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")],
)
def test_an_unknown_exporter_is_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    provider.producer_tracer.cache_clear()
    monkeypatch.setenv(variable, value)
    with pytest.raises(TracesUnavailable, match=value):
        Client("redis://127.0.0.1:1", settings=TRACED)


def test_a_missing_package_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    provider.producer_tracer.cache_clear()
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.resources", None)
    with pytest.raises(TracesUnavailable, match=r"opentelemetry.*traces\]"):
        Client("redis://127.0.0.1:1", settings=TRACED)
