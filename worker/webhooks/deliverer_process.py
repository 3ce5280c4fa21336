"""Runs a `Deliverer` per shard in this process: signals, connections, start and end."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Sequence
from typing import Any

import structlog
from redis.exceptions import RedisError

from batchmill.producer.shard_list import Shard
from batchmill.producer.store.job_store import JobStore
from batchmill.producer.store.job_stores import check_job_stores, open_job_stores
from batchmill.producer.store.start_check import refuse_unsupported
from batchmill.worker.health.report import HealthFile
from batchmill.worker.metrics.deliverer_series import DelivererMeter
from batchmill.worker.service_errors import NoWebhookSecret
from batchmill.worker.tracing.process import start_tracing

from .deliverer import Deliverer
from .deliverer_group import DelivererGroup
from .deliverer_health import report_health
from .deliverer_metrics import serve_metrics
from .deliverer_session import DelivererSession
from .sender import WebhookSender
from .settings import WebhookSettings

_log = structlog.get_logger(__name__)


def run_deliverer(broker_url: str, settings: WebhookSettings) -> None:
    """Deliver webhooks until SIGTERM or SIGINT; then finish the attempts in flight, and return.

    Args:
        broker_url: of the broker, or a list of shards.
        settings: secrets, limits and schedule.

    Raises:
        NoWebhookSecret: no secret is set to sign with.
        UnsupportedBroker: a server is too old, or runs in cluster mode.
        ShardMismatch: a shard belongs to another list.
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
    stores = open_job_stores(broker_url)
    await asyncio.to_thread(_check, broker_url, stores)
    sender = WebhookSender.from_settings(settings)
    owner = f"{socket.gethostname()}-{os.getpid()}"
    timeout_s = settings.webhook_session_timeout_s
    sessions = [DelivererSession(store, shard.url, owner, timeout_s) for shard, store in stores]
    meter, health = DelivererMeter(), HealthFile("deliverer")
    deliverers = DelivererGroup(
        [
            Deliverer(
                *(store, settings, sender),
                owner=owner,
                session=session.name,
                tracer=tracer,
                meter=meter,
            )
            for (_, store), session in zip(stores, sessions, strict=True)
        ]
    )
    close_metrics = serve_metrics(broker_url, settings, deliverers, meter, health.probe)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, deliverers.stop)
    _log.info(
        "deliverer_started", owner=owner, num_secrets=len(settings.secrets), **_shards(stores)
    )
    for session in sessions:
        session.start()
    reporting = asyncio.create_task(report_health(deliverers, owner, health))
    try:
        await deliverers.run()
    finally:
        reporting.cancel()
        close_metrics()
        await asyncio.gather(*(asyncio.to_thread(session.close) for session in sessions))
        for _, store in stores:
            store.close()
    _log.info("deliverer_stopped", owner=owner)


def _check(broker_url: str, stores: Sequence[tuple[Shard, JobStore]]) -> None:
    """Check the shards. A deliverer also starts while one of them is away."""
    for pair in stores:
        refuse_unsupported(pair[0].url)
        try:
            check_job_stores(broker_url, [pair])
        except RedisError as error:
            _log.warning("shard_not_checked", shard=pair[0].name, error=type(error).__name__)


def _shards(stores: Sequence[tuple[Shard, JobStore]]) -> dict[str, str]:
    names = " ".join(shard.name for shard, _ in stores)
    return {"shards": names} if names else {}
