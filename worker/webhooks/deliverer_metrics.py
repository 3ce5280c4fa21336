"""The metrics of a deliverer, and those of the whole broker if its settings ask for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from batchmill.producer.store.every_shard import JobStores
from batchmill.producer.store.shard_doubts import COMPARE_LIMIT_S
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
    stores: JobStores | None = None
    if settings.metrics_queues:
        # The scrapes have connections of their own.
        stores = JobStores.from_url(broker_url, timeout_s=None, part_limit_s=COMPARE_LIMIT_S)
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
        if stores is not None:
            stores.close()

    return close
