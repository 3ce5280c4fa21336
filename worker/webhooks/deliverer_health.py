"""The health of a deliverer: whether its event loop moves, and whether Redis replies."""

from __future__ import annotations

import asyncio

import structlog

from batchmill.worker.health.report import (
    BROKER_TIMEOUT_S,
    REPORT_INTERVAL_S,
    HealthFile,
    HealthReport,
)

from .deliverer_group import DelivererGroup

_log = structlog.get_logger(__name__)


async def report_health(deliverer: DelivererGroup, name: str, file: HealthFile) -> None:
    """Write the deliverer's health file every second until this task is cancelled.

    The event loop writes it, so a loop that stands still is seen by the age of the file.

    Args:
        deliverer: that runs in this event loop.
        name: of the deliverer.
        file: its health file.
    """
    is_writable = True
    try:
        while True:
            try:
                file.write(_report(deliverer, name))
                is_writable = True
            except OSError as error:
                if is_writable:
                    _log.error("health_not_written", reason=str(error))
                is_writable = False
            await asyncio.sleep(REPORT_INTERVAL_S)
    finally:
        file.remove()


def _report(deliverer: DelivererGroup, name: str) -> HealthReport:
    silent_s = deliverer.broker_silent_s
    away = f"Redis has not replied for {silent_s:.0f} s"
    return HealthReport(
        service="deliverer",
        name=name,
        live_problem=None,
        ready_problem="it is shutting down" if deliverer.is_stopping else None,
        broker_problem=away if silent_s > BROKER_TIMEOUT_S else None,
    )
