"""The Celery pool: takes deliveries in without blocking, and drains instead of waiting."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import structlog
from celery import signals
from celery.concurrency.base import BasePool
from celery.worker import state as worker_state
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from batchmill.producer.broker_url import redis_url
from batchmill.producer.store.job_store import JobStore
from batchmill.worker.jobs.delivery import SETTLED_KEY, Delivery
from batchmill.worker.jobs.runtime import WorkerRuntime
from batchmill.worker.settings import WorkerSettings

from .celery_ends import CeleryEnds

_log = structlog.stdlib.get_logger("batchmill.pool")
#: Where the app keeps the settings that it was made from, with the broker's URL filled in.
SETTINGS_KEY = "batchmill_settings"
#: Wait before a claim that Redis did not answer is tried again.
_RETRY_CLAIM_S = 0.5
#: Longest turn of the event loop while draining.
_PUMP_INTERVAL_S = 0.02
#: A call that Redis has not answered within this time has failed.
_REDIS_TIMEOUT_S = 5.0
_EXIT_FAILURE = 1


class EnginePool(BasePool):
    """Two-phase pool: claims jobs in Celery's event loop, tells their ends from finisher threads.

    Shutting down never waits for jobs to end: warm or cold, they are checkpointed and given back,
    and another worker goes on from there.

    Source: docs/decisions/0002-two-phase-pool.md.
    """

    signal_safe = False
    body_can_be_buffer = True
    task_join_will_block = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _, self._node_name = self.options["initargs"]
        self._settings: WorkerSettings = getattr(self.app, SETTINGS_KEY)
        self._hub: Any = None
        self._retry_is_due = False
        store = JobStore(_connect(str(self._settings.broker_url)))
        self._runtime = WorkerRuntime(
            self._settings,
            store,
            name=self._node_name,
            on_room=self._wake,
            on_fatal=self._give_up,
            must_stop=_is_told_to_stop,
            tell_celery=CeleryEnds(store, self.app.backend).tell,
        )

    def on_start(self) -> None:
        """Start the engine and everything around it; the gate opens when the model is loaded."""
        signals.task_revoked.connect(self._on_revoked, weak=False, dispatch_uid="batchmill-revoked")
        self._runtime.start()

    def register_with_event_loop(self, hub: Any) -> None:
        """Keep the event loop, to wake it from other threads."""
        self._hub = hub

    def gate_is_open(self) -> bool:
        """Whether the consumer may ask for another message."""
        return self._runtime.gate.may_ask()

    def on_apply(
        self,
        target: Callable[..., Any],
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        callback: Callable[[Any], None] | None = None,
        accept_callback: Callable[[int, float], None] | None = None,
        error_callback: Callable[[Any], None] | None = None,
        soft_timeout: float | None = None,
        timeout: float | None = None,
        **_: Any,
    ) -> None:
        """Take one delivered task. Called in the event loop; blocks for one Redis round trip."""
        assert callback is not None
        assert accept_callback is not None
        assert error_callback is not None
        limits = [limit for limit in (soft_timeout, timeout) if limit]
        delivery = Delivery(
            task_id=args[1],
            target=target,
            args=tuple(args),
            on_done=callback,
            on_accepted=accept_callback,
            on_error=error_callback,
            time_limit_s=min(limits, default=None),
        )
        if not self._runtime.intake.take(delivery):
            self._schedule_retry()

    def on_close(self) -> None:
        """First thing at any shutdown: take nothing more on, and let the engine finish its step."""
        self._runtime.begin_drain()

    def on_stop(self) -> None:
        """Warm shutdown: give everything back in time, and let Celery hear of it."""
        self._drain(self._settings.drain_timeout_s)

    def on_terminate(self) -> None:
        """Cold shutdown: the same, as far as it can be."""
        self._drain(self._settings.drain_timeout_s)

    def terminate_job(self, pid: int, signal: int | None = None) -> None:
        """Nothing: a revoked job is cancelled in its record, no process is its own."""

    def _get_info(self) -> dict[str, Any]:
        info: dict[str, Any] = super()._get_info()
        info.update(self._runtime.stats())
        return info

    def _drain(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        self._runtime.begin_drain()
        if self._hub is not None:
            self._pump(deadline)
        try:
            self._runtime.finish_drain(max(0.0, deadline - time.monotonic()))
        except RedisError as error:
            _log.warning("drain_without_redis", error=type(error).__name__)
        if self._hub is not None:
            self._pump(time.monotonic())  # the last events

    def _pump(self, deadline: float) -> None:
        """Turn the event loop until all is drained: it sends events and acknowledgements."""
        loop = self._hub.create_loop()
        while True:
            drained = self._runtime.is_drained() or time.monotonic() >= deadline
            self._hub.call_later(_PUMP_INTERVAL_S, _nothing)  # the turn waits no longer than this
            try:
                next(loop)
            except StopIteration:
                loop = self._hub.create_loop()
            except Exception as error:
                # The broker is gone; the ledger has its own connection and its own patience.
                _log.warning("event_loop_ended", error=type(error).__name__)
                return
            if drained:
                return

    def _wake(self) -> None:
        hub = self._hub
        if hub is not None:
            hub.call_soon(_nothing)

    def _schedule_retry(self) -> None:
        if not self._retry_is_due:
            self._retry_is_due = True
            self._hub.call_later(_RETRY_CLAIM_S, self._retry_parked)

    def _retry_parked(self) -> None:
        self._retry_is_due = False
        if not self._runtime.intake.retry_parked():
            self._schedule_retry()

    def _give_up(self, message: str) -> None:
        """End the worker: without an engine it serves nobody."""
        worker_state.should_stop = _EXIT_FAILURE
        self._wake()

    def _on_revoked(self, request: Any = None, **_: Any) -> None:
        """Carry a revoke over to the job's record, or it would be announced again."""
        if request is None or getattr(request, SETTLED_KEY, False):
            return
        try:
            self._runtime.cancel(request.id)
        except RedisError as error:
            _log.warning("revoke_not_stored", job_id=request.id, error=type(error).__name__)


def _connect(url: str) -> Redis:
    """Return a client that gives up soon: each caller here tries again in its own time.

    redis-py's own repetitions would hold up the event loop, and the ledger past its leases.
    """
    return Redis.from_url(
        redis_url(url),
        socket_timeout=_REDIS_TIMEOUT_S,
        socket_connect_timeout=_REDIS_TIMEOUT_S,
        health_check_interval=10,
        retry=Retry(NoBackoff(), 0),
    )


def _is_told_to_stop() -> bool:
    flags = (worker_state.should_stop, worker_state.should_terminate)
    return any(flag is not None and flag is not False for flag in flags)


def _nothing() -> None:
    """Make the event loop turn."""
