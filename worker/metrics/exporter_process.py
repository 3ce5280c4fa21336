"""Runs the exporter of queue figures in this process, as `batchmill metrics` does."""

from __future__ import annotations

import signal
import threading
from types import FrameType

import structlog

from batchmill.producer.store.every_shard import JobStores
from batchmill.producer.store.job_stores import open_job_stores
from batchmill.producer.store.shard_doubts import COMPARE_LIMIT_S

from .probes import redis_probe
from .queue_exporter import QueueExporter
from .server import MetricsServer
from .settings import ExporterSettings

_log = structlog.stdlib.get_logger("batchmill.metrics")
#: Port of `batchmill metrics` if none is set.
DEFAULT_PORT = 9464


def run_exporter(broker_url: str, settings: ExporterSettings) -> None:
    """Serve the figures until SIGTERM or SIGINT.

    Args:
        broker_url: of the broker, or a list of shards.
        settings: address, tenants and target.

    Raises:
        MetricsFailed: the address is in use.
    """
    stores = JobStores.from_url(broker_url, timeout_s=None, part_limit_s=COMPARE_LIMIT_S)
    probed = open_job_stores(broker_url)
    exporter = QueueExporter(
        stores,
        target_s=settings.backlog_target_s,
        tenants=settings.metrics_tenants,
    )
    port = DEFAULT_PORT if settings.metrics_port is None else settings.metrics_port
    server = MetricsServer(
        settings.metrics_host,
        port,
        service="exporter",
        sources=[exporter.read],
        probe=redis_probe(*(store.client for _, store in probed), needs_all=False),
    )
    ended = threading.Event()

    def end(number: int, frame: FrameType | None) -> None:
        ended.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    server.start()
    ended.wait()
    server.close()
    stores.close()
    for _, store in probed:
        store.close()
