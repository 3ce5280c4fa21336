"""A job that was killed twice, with everything that made spans of it, and an OTLP receiver."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from batchmill.producer import Client
from batchmill.producer.protocol import keys
from batchmill.producer.settings import ProducerSettings
from batchmill.producer.tracing import provider
from batchmill.worker.webhooks.local_receiver import LOOPBACK, WebhookReceiver

from ...conftest import RedisServer
from ...support.spans import SeenSpan, read_spans
from ..conftest import Mill, WorkerProcess
from ..webhook_deliverers import Deliverers

#: Of a span that waits for its export; a killed worker's last ones are lost.
_EXPORT_DELAY_MS = 20


class TracedSite:
    """A server, workers and a deliverer with traces, and receivers of spans and of webhooks."""

    def __init__(self, folder: Path) -> None:
        self.server = RedisServer()
        self.server.start()
        self.collector = WebhookReceiver()
        self.collector.__enter__()
        self.hooks = WebhookReceiver()
        self.hooks.__enter__()
        self.variables = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": self.collector.url,
            "OTEL_BSP_SCHEDULE_DELAY": str(_EXPORT_DELAY_MS),
        }
        self.mill = Mill(self.server.url, folder)
        self.deliverers = Deliverers(self.server.url)

    def start_worker(self, name: str) -> WorkerProcess:
        # Leases so long that the end of a killed worker's session is always seen first.
        return self.mill.start_worker(
            name, stub={"step_time_s": 0.02}, traces=True, log_format="json", lease_s=60
        )

    def client(self) -> Client:
        """Return a client of an application that has not set OpenTelemetry up."""
        provider.producer_tracer.cache_clear()
        settings = ProducerSettings(
            traces=True,
            webhook_allow_http=True,
            webhook_allow_ports=("1024-65535",),
            webhook_allow_networks=(LOOPBACK,),
        )
        return Client(self.server.url, settings=settings)

    def spans(self, trace_id: str) -> list[SeenSpan]:
        """Return the spans of a trace that have arrived."""
        return [span for span in self.all_spans() if span.trace_id == trace_id]

    def all_spans(self) -> list[SeenSpan]:
        """Return all spans that have arrived."""
        return read_spans(each.body for each in self.collector.requests)

    def wait_for_spans(
        self, trace_id: str, condition: Callable[[list[SeenSpan]], bool], what: str
    ) -> list[SeenSpan]:
        self.mill.wait_for(lambda: condition(self.spans(trace_id)), what)
        return self.spans(trace_id)

    def stored_context(self, job_id: str) -> str:
        value: Any = self.mill.store.client.hget(keys.job(job_id), "traceparent")
        return "" if value is None else value.decode()

    def close(self) -> None:
        self.deliverers.close()
        self.mill.close()
        self.hooks.__exit__()
        self.collector.__exit__()
        self.server.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TracedSite]:
    """A site with one worker at the end of `killed_twice`, shared by the tests of a module."""
    with pytest.MonkeyPatch.context() as patch:
        site = TracedSite(tmp_path_factory.mktemp("traced"))
        for name in [name for name in os.environ if name.startswith("OTEL_")]:
            patch.delenv(name)
        for name, value in site.variables.items():
            patch.setenv(name, value)
        site.deliverers.start(TRACES="1")
        yield site
        site.close()
        provider.producer_tracer.cache_clear()


@pytest.fixture(scope="module")
def killed_twice(site: TracedSite) -> str:
    """The id of a job whose workers were killed twice before the third one completed it."""
    prompt, num_tokens = "a secret prompt", 60
    with site.client() as client:
        job = client.submit(prompt, max_tokens=num_tokens, seed=7, webhook=f"{site.hooks.url}/done")
    for number in (1, 2):
        worker = site.start_worker(f"w{number}")
        site.mill.wait_tokens(job.id, 20 * number)
        worker.process.kill()
        worker.process.wait()
    site.start_worker("w3")
    (record,) = site.mill.wait_ended(job.id)
    assert record.attempts == 3
    return job.id


@pytest.fixture(scope="module")
def worker(site: TracedSite) -> WorkerProcess:
    """A worker with traces."""
    return site.start_worker("w1")
