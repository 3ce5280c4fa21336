"""The metrics of a gateway, on a port of their own: clients must not read them."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Self

from batchmill.producer.store.job_stores import open_job_stores
from batchmill.worker.metrics.gateway_series import GatewayMeter
from batchmill.worker.metrics.probes import redis_probe

from .settings import GatewaySettings


class GatewayMetrics:
    """Serves the metrics while it is entered, if the settings name a port."""

    def __init__(self, settings: GatewaySettings) -> None:
        """Begin at 0."""
        self._settings = settings
        self._open = ExitStack()
        #: Counts requests; None without a port.
        self.meter = None if settings.metrics_port is None else GatewayMeter()

    def __enter__(self) -> Self:
        """Open the port.

        Raises:
            MetricsFailed: its address is in use.
        """
        settings, meter = self._settings, self.meter
        if settings.metrics_port is None or meter is None:
            return self
        from batchmill.worker.metrics.server import MetricsServer

        assert settings.broker_url is not None
        stores = open_job_stores(settings.broker_url)
        for _, store in stores:
            self._open.callback(store.close)
        server = MetricsServer(
            settings.metrics_host,
            settings.metrics_port,
            service="gateway",
            sources=[meter.read],
            probe=redis_probe(*(store.client for _, store in stores), needs_all=False),
        )
        self._open.callback(server.close)
        server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()
