"""The Celery pool: takes tasks without blocking, and drains at shutdown instead of waiting."""

from __future__ import annotations

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
from batchmill.producer.protocol.replies import JobState
from batchmill.producer.store.job_store import JobStore
from batchmill.worker.errors import MalformedMessage
from batchmill.worker.jobs.outcome import Outcome
from batchmill.worker.jobs.runtime import WorkerRuntime
from batchmill.worker.settings import WorkerSettings

from .celery_task import SETTLED_KEY, CeleryTask
from .drain import do_nothing, drain_worker
from .missing_results import MissingResults
from .refused_task import RefusedTask, read_sender
from .revocation import install_revoke

_log = structlog.stdlib.get_logger("batchmill.pool")
#: Attribute of the app that holds its settings, with the broker's URL filled in.
SETTINGS_KEY = "batchmill_settings"
#: Wait before a claim without a reply from Redis is tried again.
_RETRY_CLAIM_S = 0.5
#: A call without a reply from Redis within this time has failed.
_REDIS_TIMEOUT_S = 5.0
_EXIT_FAILURE = 1


class EnginePool(BasePool):
    """Two-phase pool: claims jobs in Celery's event loop, reports ends from finisher threads.

    A shutdown never waits for jobs to end: warm or cold, they are checkpointed and given back, and
    another worker continues from there.

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
        self._store = store = JobStore(_connect(str(self._settings.broker_url)))
        self._runtime = WorkerRuntime(
            self._settings,
            store,
            name=self._node_name,
            on_room=self._wake,
            on_fatal=self._end_worker,
            must_stop=_is_stop_requested,
            write_missing_results=MissingResults(store, self.app).write_missing,
        )

    def on_start(self) -> None:
        """Start the engine and everything around it; the gate opens when the model is loaded."""
        install_revoke(self._store)
        signals.task_revoked.connect(self._on_revoked, weak=False, dispatch_uid="batchmill-revoked")
        self._runtime.start()

    def register_with_event_loop(self, hub: Any) -> None:
        """Keep a reference to the event loop, so that other threads can wake it."""
        self._hub = hub

    def gate_is_open(self) -> bool:
        """Return whether the consumer may ask for another message."""
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
        """Claim one task's job. Called in the event loop; blocks for one Redis round trip."""
        assert callback is not None
        assert accept_callback is not None
        assert error_callback is not None
        limits = [limit for limit in (soft_timeout, timeout) if limit]
        task = CeleryTask(
            task_id=args[1],
            target=target,
            args=tuple(args),
            on_done=callback,
            on_accepted=accept_callback,
            on_error=error_callback,
            time_limit_s=min(limits, default=None),
            store=self._store,
        )
        if not self._runtime.claimer.claim(task):
            self._schedule_retry()

    def report_refused(self, element: bytes, error: MalformedMessage) -> None:
        """Let a finisher thread report to the sender of a dead letter that it was refused."""
        request = read_sender(element)
        if request is None:
            return
        task = RefusedTask(request["id"], request, error, self.app, self._store)
        self._runtime.reporter.accept(task)
        self._runtime.reporter.report(task, Outcome(JobState.FAILED))

    def on_close(self) -> None:
        """Begin any shutdown: take no more jobs, and let the engine finish its step."""
        self._runtime.begin_drain()

    def on_stop(self) -> None:
        """Shut down warm: give all jobs back in time, and report it to Celery."""
        self._drain()

    def on_terminate(self) -> None:
        """Shut down cold: the same, as far as possible."""
        self._drain()

    def terminate_job(self, pid: int, signal: int | None = None) -> None:
        """Do nothing: a revoked job is cancelled in its record, and has no process to end."""

    def _get_info(self) -> dict[str, Any]:
        info: dict[str, Any] = super()._get_info()
        info.update(self._runtime.stats())
        return info

    def _drain(self) -> None:
        drain_worker(self._runtime, self._hub, self._settings.drain_timeout_s)

    def _wake(self) -> None:
        hub = self._hub
        if hub is not None:
            hub.call_soon(do_nothing)

    def _schedule_retry(self) -> None:
        if not self._retry_is_due:
            self._retry_is_due = True
            self._hub.call_later(_RETRY_CLAIM_S, self._retry_parked)

    def _retry_parked(self) -> None:
        self._retry_is_due = False
        if not self._runtime.claimer.retry_parked():
            self._schedule_retry()

    def _end_worker(self, message: str) -> None:
        """End the worker, which cannot run without an engine and a record writer."""
        worker_state.should_stop = _EXIT_FAILURE
        self._wake()

    def _on_revoked(self, request: Any = None, **_: Any) -> None:
        """Cancel the job in its record too, or it would be announced again."""
        if request is None or getattr(request, SETTLED_KEY, False):
            return
        try:
            self._runtime.cancel(request.id)
        except RedisError as error:
            _log.warning("revoke_not_stored", job_id=request.id, error=type(error).__name__)


def _connect(url: str) -> Redis:
    """Return a client that fails soon: each caller here has its own schedule of retries.

    redis-py's retries would block the event loop, and the record writer past its leases.
    """
    return Redis.from_url(
        redis_url(url),
        socket_timeout=_REDIS_TIMEOUT_S,
        socket_connect_timeout=_REDIS_TIMEOUT_S,
        health_check_interval=10,
        retry=Retry(NoBackoff(), 0),
    )


def _is_stop_requested() -> bool:
    flags = (worker_state.should_stop, worker_state.should_terminate)
    return any(flag is not None and flag is not False for flag in flags)
