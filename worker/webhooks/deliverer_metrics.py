"""The metrics of a deliverer, and those of the whole broker if its settings ask for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from batchmill.producer.store.job_store import JobStore
from batchmill.worker.metrics.deliverer_series import IN_FLIGHT, OUTBOX_SILENT, DelivererMeter
from batchmill.worker.metrics.probes import Probe
from batchmill.worker.metrics.queue_exporter import QueueExporter
from batchmill.worker.metrics.series import Reading, Source, number

from .deliverer import Deliverer
from .settings import WebhookSettings


def serve_metrics(
    broker_url: str,
    settings: WebhookSettings,
    deliverer: Deliverer,
    meter: DelivererMeter,
    probe: Probe,
) -> Callable[[], None]:
    """Open the port of the settings, if there is one; return the function that closes it.

    Raises:
        MetricsFailed: its address is in use.
    """
    if settings.metrics_port is None:
        return lambda: None
    from batchmill.worker.metrics.server import MetricsServer

    def gauges() -> Iterator[Reading]:
        yield from number(IN_FLIGHT, deliverer.num_in_flight)
        yield from number(OUTBOX_SILENT, deliverer.broker_silent_s)

    sources: list[Source] = [meter.read, gauges]
    store = None
    if settings.metrics_queues:
        store = JobStore.from_url(broker_url)  # the scrapes have a connection of their own
        exporter = QueueExporter(
            store, target_s=settings.backlog_target_s, tenants=settings.metrics_tenants
        )
        sources.append(exporter.read)
    server = MetricsServer(
        settings.metrics_host,
        settings.metrics_port,
        service="deliverer",
        sources=sources,
        probe=probe,
    )
    server.start()

    def close() -> None:
        server.close()
        if store is not None:
            store.close()

    return close
