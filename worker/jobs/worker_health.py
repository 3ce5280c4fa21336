"""The health of a worker: whether its process works, and whether it does work now."""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog

from batchmill.worker.engine_host.engine_link import EngineLink
from batchmill.worker.health.report import BROKER_TIMEOUT_S, HealthFile, HealthReport
from batchmill.worker.metrics.probes import Health

from .heartbeat import Heartbeat

_log = structlog.stdlib.get_logger("batchmill.worker_health")
#: The event loop may stand still for this long although Redis replies. Celery waits for up to half
#: a minute before it connects again.
_MAX_LOOP_STALL_S = 120.0


class WorkerHealth:
    """Writes one worker's health file. A thread of the runtime calls `write` every second.

    Liveness does not depend on Redis: a worker that waits for it must not be restarted, because it
    would have to load its model again and could do nothing better.
    """

    def __init__(
        self,
        link: EngineLink,
        heartbeat: Heartbeat,
        *,
        name: str,
        engine_stall_s: float,
        is_draining: Callable[[], bool],
    ) -> None:
        """Bind to the parts that it reports on.

        Args:
            link: to the engine.
            heartbeat: whose last success shows that Redis replies.
            name: of the worker.
            engine_stall_s: seconds after which a stuck engine is killed.
            is_draining: whether the worker is shutting down.
        """
        self._link = link
        self._heartbeat = heartbeat
        self._name = name
        self._engine_stall_s = engine_stall_s
        self._is_draining = is_draining
        self._file = HealthFile("worker")
        self._is_writable = True
        # When the event loop last moved, or had a reason not to; None before its start.
        self._loop_moved_at: float | None = None

    def loop_moved(self) -> None:
        """Note that the event loop moves. It calls this every second."""
        self._loop_moved_at = time.monotonic()

    def write(self) -> None:
        """Write the report."""
        broker_problem = self._broker_problem()
        report = HealthReport(
            service="worker",
            name=self._name,
            live_problem=self._live_problem(is_broker_away=broker_problem is not None),
            ready_problem=self._ready_problem(),
            broker_problem=broker_problem,
        )
        try:
            self._file.write(report)
        except OSError as error:
            if self._is_writable:
                _log.error("health_not_written", reason=str(error))
            self._is_writable = False
        else:
            self._is_writable = True

    def probe(self) -> Health:
        """Return the state for HTTP probes: that of the last report. From any thread."""
        return self._file.probe()

    def remove(self) -> None:
        """Delete the report: the worker ends."""
        self._file.remove()

    def _live_problem(self, *, is_broker_away: bool) -> str | None:
        stalled_s = self._link.stalled_s
        if stalled_s > 2 * self._engine_stall_s:
            return f"the engine has stood still for {stalled_s:.0f} s and was not replaced"
        if self._loop_moved_at is None:
            return None
        if is_broker_away:
            self._loop_moved_at = time.monotonic()
        silent_s = time.monotonic() - self._loop_moved_at
        if silent_s > _MAX_LOOP_STALL_S:
            return f"the event loop has stood still for {silent_s:.0f} s"
        return None

    def _ready_problem(self) -> str | None:
        if self._is_draining():
            return "it is shutting down"
        if self._link.ready is None:
            return "its model is not loaded"
        if not self._link.is_moving:
            return f"its engine has stood still for {self._link.stalled_s:.0f} s"
        return None

    def _broker_problem(self) -> str | None:
        silent_s = self._heartbeat.silent_s
        if silent_s > self._heartbeat.interval_s + BROKER_TIMEOUT_S:
            return f"Redis has not replied for {silent_s:.0f} s"
        return None
