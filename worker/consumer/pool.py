"""The Celery pool: takes tasks without blocking, and drains at shutdown instead of waiting."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import structlog
from celery import signals
from celery.concurrency.base import BasePool
from celery.worker import state as worker_state
from redis import Redis
from redis.exceptions import RedisError

from batchmill.producer.protocol.keys import TASK_NAME
from batchmill.producer.store.connection import connect
from batchmill.producer.store.job_store import JobStore
from batchmill.producer.store.replication import replica_wait
from batchmill.worker.errors import EXIT_CONFIG
from batchmill.worker.health.report import REPORT_INTERVAL_S
from batchmill.worker.jobs.attempt_trace import NO_TRACES, JobTraces
from batchmill.worker.jobs.runtime import MISSING_RESULTS_INTERVAL_S, WorkerRuntime
from batchmill.worker.settings import WorkerSettings

from .celery_task import SETTLED_KEY, CeleryTask
from .drain import do_nothing, drain_worker
from .missing_results import MissingResults
from .pool_size import refuse_pool_size
from .progress_events import SEND_INTERVAL_S, ProgressEvents
from .refused_task import RefusedTasks
from .revocation import install_revoke
from .task_mover import TASKS_WAIT_S, TaskMover

_log = structlog.stdlib.get_logger("batchmill.pool")
#: Attribute of the app that holds its settings, with the broker's URL filled in.
SETTINGS_KEY = "batchmill_settings"
#: Wait before a claim without a reply from Redis is tried again.
_RETRY_CLAIM_S = 0.5
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
        self._store = store = JobStore(
            _connect(self._settings), replica_wait=replica_wait(self._settings)
        )
        #: The channel of the current connection that consumes announcements.
        self.channel: Any = None
        refused = RefusedTasks(self.app, store, node_name=self._node_name)
        self._runtime = WorkerRuntime(
            self._settings,
            store,
            name=self._node_name,
            on_room=self._wake,
            on_fatal=self._end_worker,
            must_stop=_is_stop_requested,
            write_missing_results=lambda: self._missing.write_missing(),
            move_tasks=lambda: self._mover.move_tasks(),
            consumes_all=lambda: set(self._settings.queues) <= set(self._consumed_queues()),
            traces=_traces(self._settings, self._node_name),
        )
        turns, session = self._runtime.turns, self._runtime.session
        self._missing = MissingResults(
            store, self.app, session=session, turn=turns.turn(MISSING_RESULTS_INTERVAL_S)
        )
        self._progress = ProgressEvents(self._runtime.jobs.snapshot)
        self._mover = TaskMover(
            self._settings,
            store,
            refused,
            session=session,
            connected_s=self._runtime.connected_s,
            read_queues=self._consumed_queues,
            turn=turns.turn(TASKS_WAIT_S),
        )

    def on_start(self) -> None:
        """Start the engine and everything around it; the gate opens when the model is loaded."""
        install_revoke(self._store)
        self.app.tasks[TASK_NAME].store = self._store
        refuse_pool_size()
        # What a worker sends goes through its own transport. Other programs that use this app, as
        # Flower does, keep kombu's, whose URLs they know.
        self.app.conf.broker_write_url = self.app.conf.broker_read_url
        signals.task_revoked.connect(self._on_revoked, weak=False, dispatch_uid="batchmill-revoked")
        self._runtime.start()

    def register_with_event_loop(self, hub: Any) -> None:
        """Keep a reference to the event loop, so that other threads can wake it."""
        self._hub = hub
        # Celery drops this timer when the connection is lost, and calls this again afterwards.
        hub.call_repeatedly(REPORT_INTERVAL_S, self._runtime.health.loop_moved)
        hub.call_repeatedly(SEND_INTERVAL_S, self._progress.send)

    def gate_is_open(self) -> bool:
        """Return whether the consumer may ask for another message."""
        return self._runtime.high.may_ask()

    def select_queues(self, queues: Sequence[str]) -> list[str]:
        """Return the queues that the consumer asks now; see `HighIntake`."""
        return self._runtime.high.select(queues)

    def handed_lists(self) -> list[str]:
        """Return the lists of announcements for this worker alone that are asked now."""
        return self._runtime.takeover.handed_lists

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
            session=self._runtime.session,
        )
        if not self._runtime.claimer.claim(task):
            self._schedule_retry()

    def on_close(self) -> None:
        """Begin any shutdown: take no more jobs, and let the engine finish its step."""
        self._mover.close()
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

    def _consumed_queues(self) -> Sequence[str]:
        """Return the queues that the worker consumes now: an operator may add and cancel some."""
        return () if self.channel is None else sorted(self.channel.active_queues, key=self._rank)

    def _rank(self, queue: str) -> int:
        queues = self._settings.queues
        return queues.index(queue) if queue in queues else len(queues)

    def _drain(self) -> None:
        self._mover.close()
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
        worker_state.should_stop = EXIT_CONFIG if self._runtime.has_start_failed else _EXIT_FAILURE
        self._wake()

    def _on_revoked(self, request: Any = None, **_: Any) -> None:
        """Cancel the job in its record too, or it would be announced again."""
        if request is None or getattr(request, SETTLED_KEY, False):
            return
        try:
            self._runtime.cancel(request.id)
        except RedisError as error:
            _log.warning("revoke_not_stored", job_id=request.id, error=type(error).__name__)


def _connect(settings: WorkerSettings) -> Redis:
    """Return a client that fails soon: each caller here has its own schedule of retries.

    redis-py's retries would block the event loop, and the record writer past its leases.
    """
    return connect(str(settings.broker_url), timeout_s=settings.broker_timeout_s / 2, num_retries=0)


def _traces(settings: WorkerSettings, node_name: str) -> JobTraces:
    if not settings.traces:
        return NO_TRACES
    from batchmill.worker.tracing.attempt_spans import OtelTraces

    return OtelTraces.from_settings(settings, model=settings.served_name, worker=node_name)


def _is_stop_requested() -> bool:
    flags = (worker_state.should_stop, worker_state.should_terminate)
    return any(flag is not None and flag is not False for flag in flags)
