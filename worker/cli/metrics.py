"""`batchmill metrics`: the exporter of queue figures for Prometheus."""

from __future__ import annotations

import typer

from .broker_connection import resolve_broker
from .command_settings import with_setting_flags
from .options import BrokerUrlOption, JsonOption

_EPILOG = (
    "Examples:\n\n  batchmill metrics\n\n"
    "  batchmill metrics --metrics-host 0.0.0.0 --metrics-port 9464\n\n"
    "Then: curl http://127.0.0.1:9464/metrics"
)


def add_metrics_command(app: typer.Typer) -> None:
    """Add `metrics`."""
    app.command("metrics", epilog=_EPILOG)(with_setting_flags("metrics", metrics))


def metrics(broker_url: BrokerUrlOption = None, as_json: JsonOption = False) -> None:
    """Serve the figures of queues, workers and webhooks until SIGTERM, on port 9464 by default.

    Run one per broker: they are figures of the whole broker, and Prometheus would add up those of
    two. Workers, deliverers and gateways serve their own if BATCHMILL_METRICS_PORT is set.
    """
    from batchmill.worker.logs import configure_logging
    from batchmill.worker.metrics.exporter_process import run_exporter
    from batchmill.worker.metrics.settings import ExporterSettings
    from batchmill.worker.unknown_settings import log_unknown_variables

    settings = ExporterSettings()
    configure_logging(settings.log_level, "json" if as_json else settings.log_format)
    log_unknown_variables()
    run_exporter(resolve_broker(broker_url), settings)
