"""The metrics of a deliverer, and those of the whole broker if its settings ask for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from batchmill.producer.store.job_store import JobStore
from batchmill.producer.store.job_stores import open_job_stores
from batchmill.worker.metrics.deliverer_series import IN_FLIGHT, OUTBOX_SILENT, DelivererMeter
from batchmill.worker.metrics.probes import Probe
from batchmill.worker.metrics.queue_exporter import QueueExporter
from batchmill.worker.metrics.series import Reading, Source, number

from .deliverer_group import DelivererGroup
from .settings import WebhookSettings


def serve_metrics(
    broker_url: str,
    settings: WebhookSettings,
    deliverer: DelivererGroup,
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
    stores: list[JobStore] = []
    if settings.metrics_queues:
        # The scrapes have connections of their own.
        stores = [store for _, store in open_job_stores(broker_url)]
        exporter = QueueExporter(
            stores, target_s=settings.backlog_target_s, tenants=settings.metrics_tenants
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
        for store in stores:
            store.close()

    return close
