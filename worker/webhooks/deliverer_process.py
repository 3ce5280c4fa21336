"""Runs a `Deliverer` in this process: its signals, connections, start and end."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from typing import Any

import structlog

from batchmill.producer.store.job_store import JobStore
from batchmill.worker.health.report import HealthFile
from batchmill.worker.metrics.deliverer_series import DelivererMeter
from batchmill.worker.service_errors import NoWebhookSecret
from batchmill.worker.tracing.process import start_tracing

from .deliverer import Deliverer
from .deliverer_health import report_health
from .deliverer_metrics import serve_metrics
from .deliverer_session import DelivererSession
from .sender import WebhookSender
from .settings import WebhookSettings

_log = structlog.get_logger(__name__)


def run_deliverer(broker_url: str, settings: WebhookSettings) -> None:
    """Deliver webhooks until SIGTERM or SIGINT; then finish the attempts in flight, and return.

    Args:
        broker_url: any URL that `JobStore.from_url` takes.
        settings: secrets, limits and schedule.

    Raises:
        NoWebhookSecret: no secret is set to sign with.
        TracesUnavailable: spans are asked for and cannot be made.
        MetricsFailed: its metrics cannot be served on their address.
    """
    if not settings.secrets:
        raise NoWebhookSecret(
            "BATCHMILL_WEBHOOK_SECRET is not set, and receivers could not check who sends; make a "
            "secret with: batchmill webhook-secret"
        )
    tracer = start_tracing(settings, "batchmill-deliverer")
    asyncio.run(_deliver(broker_url, settings, tracer))


async def _deliver(broker_url: str, settings: WebhookSettings, tracer: Any) -> None:
    store = JobStore.from_url(broker_url)
    sender = WebhookSender.from_settings(settings)
    owner = f"{socket.gethostname()}-{os.getpid()}"
    session = DelivererSession(store, broker_url, owner, settings.webhook_session_timeout_s)
    meter, health = DelivererMeter(), HealthFile("deliverer")
    deliverer = Deliverer(
        store, settings, sender, owner=owner, session=session.name, tracer=tracer, meter=meter
    )
    close_metrics = serve_metrics(broker_url, settings, deliverer, meter, health.probe)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, deliverer.stop)
    _log.info("deliverer_started", owner=owner, num_secrets=len(settings.secrets))
    session.start()
    reporting = asyncio.create_task(report_health(deliverer, owner, health))
    try:
        await deliverer.run()
    finally:
        reporting.cancel()
        close_metrics()
        await asyncio.to_thread(session.close)
        store.close()
    _log.info("deliverer_stopped", owner=owner)
