"""Everything behind the pool: how the worker's parts are put together, started and drained."""

from __future__ import annotations

import time
from collections.abc import Callable

import structlog

from batchmill.producer.protocol import keys
from batchmill.producer.protocol.records import WorkerInfo
from batchmill.producer.protocol.replies import CancelStatus, JobState, ReleaseCause
from batchmill.producer.store.job_store import JobStore
from batchmill.worker.engine_host.link import EngineLink
from batchmill.worker.engine_host.messages import EngineSpec, Ready, StepReport
from batchmill.worker.settings import WorkerSettings

from .active_jobs import ActiveJob, ActiveJobs
from .delivery import Outcome
from .ends import finished_end, refused_end
from .finishers import Finishers
from .gate import IntakeGate
from .inbox import PAUSE_S, Inbox
from .intake import Intake
from .ledger import Ledger, LedgerConfig
from .periodic import PeriodicThread
from .sweeper import sweep
from .throughput import Throughput

_log = structlog.stdlib.get_logger("batchmill.runtime")
_WATCH_INTERVAL_S = 0.1
_SWEEP_JITTER = 0.3
_DUE_INTERVAL_S = 0.5
#: Delayed jobs in one call: Redis serves nobody else meanwhile.
_DUE_LIMIT = 500
#: Time for the last steps of a shutdown that do not depend on the engine.
_CLOSE_GRACE_S = 2.0


class WorkerRuntime:
    """Owns the parts of one worker and what happens between them.

    A job's way: `Intake` claims it, `ActiveJobs` puts it on board, `EngineLink` reports its tokens
    and its end, `Ledger` writes them, `Finishers` tell Celery.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        store: JobStore,
        *,
        name: str,
        on_room: Callable[[], None],
        on_fatal: Callable[[str], None],
        must_stop: Callable[[], bool],
        tell_celery: Callable[[], None] = lambda: None,
    ) -> None:
        """Put the parts together; nothing starts.

        Args:
            settings: of the worker.
            store: the job store.
            name: Celery node name, the owner in claims.
            on_room: called from any thread when there may be room for another job.
            on_fatal: called once when the engine can never run.
            must_stop: whether Celery was told to shut down. Its event loop may be waiting for a
                message just then; `on_room` wakes it.
            tell_celery: after each sweep; see `CeleryEnds`.
        """
        self._settings = settings
        self._store = store
        self._name = name
        self._on_room = on_room
        self._on_fatal = on_fatal
        self._must_stop = must_stop
        self._tell_celery = tell_celery
        self._started_at_ms = int(time.time() * 1000)
        self._draining = False
        self.throughput = Throughput()
        self.link = EngineLink(_engine_spec(settings), self)
        self.jobs = ActiveJobs(self.link.send)
        self.finishers = Finishers(settings.finisher_threads)
        self.ledger = Ledger(
            store,
            self.jobs,
            _ledger_config(settings),
            read_progress=lambda: self.link.progress,
            set_paused=self.link.set_paused,
            settle=self._settle,
            on_fatal=on_fatal,
        )
        self.intake = Intake(
            settings,
            store,
            self.jobs,
            self.ledger,
            self.finishers,
            owner=name,
            read_identity=lambda: None if self.link.ready is None else self.link.ready.identity,
        )
        self.gate = IntakeGate(
            self.link,
            self.jobs,
            self.intake,
            max_num_seqs=settings.engine_config.max_num_seqs,
            max_num_batched_tokens=settings.engine_config.max_num_batched_tokens,
        )
        self._inbox = Inbox(settings, store)
        self._heartbeat = PeriodicThread("heartbeat", self._announce, settings.heartbeat_interval_s)
        self._periodic = [
            self._heartbeat,
            PeriodicThread("inbox", self._inbox.work, PAUSE_S),
            PeriodicThread("watchdog", self._watch, _WATCH_INTERVAL_S),
            PeriodicThread("delays", self._announce_due, _DUE_INTERVAL_S, jitter=_SWEEP_JITTER),
            PeriodicThread("sweeper", self._sweep, settings.sweep_interval_s, jitter=_SWEEP_JITTER),
        ]

    def start(self) -> None:
        """Start all threads and the engine; returns at once."""
        self.finishers.start()
        self.ledger.start()
        self.link.start()
        for thread in self._periodic:
            thread.start()

    def begin_drain(self) -> None:
        """Take nothing more on, and let the engine end after its step. Returns at once."""
        if self._draining:
            return
        self._draining = True
        self.gate.close()
        self.intake.close()
        self._inbox.close()
        self._heartbeat.poke()
        self.link.shut_down()

    def is_drained(self) -> bool:
        """Whether every job has been handed back or written to its end."""
        return self.finishers.num_open == 0 and not self.link.is_alive

    def finish_drain(self, timeout_s: float) -> None:
        """Wait for what is left to write, then end all threads; `begin_drain` came before."""
        deadline = time.monotonic() + timeout_s
        self.link.join(max(0.1, timeout_s / 2))
        if not self.finishers.wait_idle(max(0.1, deadline - time.monotonic())):
            _log.error("drain_incomplete", num_jobs=self.finishers.num_open)
        self.intake.drop_parked()
        self.ledger.close(_CLOSE_GRACE_S)
        self.finishers.close(_CLOSE_GRACE_S)
        for thread in self._periodic:
            thread.close(_CLOSE_GRACE_S)
        self._store.forget_worker(self._name)
        self._store.close()

    def cancel(self, job_id: str) -> None:
        """Cancel a job that was revoked in Celery, whether it is ours, waits, or runs elsewhere.

        Raises:
            redis.exceptions.RedisError: Redis did not answer.
        """
        answer = self._store.cancel(job_id)
        job = self.jobs.find(job_id)
        if job is not None and answer.status is CancelStatus.CANCELLING:
            self.ledger.stop(job, JobState.CANCELLED)

    # What the link reports, in its thread.

    def on_ready(self, ready: Ready) -> None:
        """Put the engine to work."""
        self.jobs.engine_up()
        self._heartbeat.poke()
        self._on_room()

    def on_report(self, report: StepReport) -> None:
        """Hand tokens and ends on."""
        is_due = False
        for request_id, token_ids, text in report.new_outputs:
            job = self.jobs.get(request_id)
            if job is not None:
                job.receive(token_ids, text)
                self.throughput.count(len(token_ids))
                is_due = is_due or self.ledger.is_due(job)
        for refused in report.refused:
            job = self.jobs.get(refused.request_id)
            if job is not None and self.jobs.remove(job):
                self.ledger.end(job, refused_end(refused))
        for finished in report.finished:
            job = self.jobs.get(finished.request_id)
            if job is not None and self.jobs.remove(job):
                self.gate.observe_prompt(finished.num_prompt_tokens)
                end = finished_end(
                    job, finished, worker=self._name, model=self._settings.served_name
                )
                self.ledger.end(job, end)
        if is_due:
            self.ledger.wake()
        if self.gate.has_opened():
            self._on_room()

    def on_gone(self, *, orderly: bool) -> None:
        """Give back what the engine had, and what waited for it."""
        on_board, held = self.jobs.engine_down()
        self._heartbeat.poke()
        # An engine that was told to end and had to be killed died of the shutdown, not of a job.
        cause = ReleaseCause.DRAIN if orderly or self._draining else ReleaseCause.ENGINE_DEATH
        self.ledger.release(on_board, cause)
        self.ledger.release(held, ReleaseCause.DRAIN)

    def on_start_failed(self, message: str) -> None:
        """There will be no engine."""
        _log.critical("engine_cannot_start", reason=message)
        self._on_fatal(message)

    def _settle(self, job: ActiveJob, outcome: Outcome) -> None:
        state = "not ours" if outcome.state is None else outcome.state.value
        _log.info(
            "job_settled",
            job_id=job.claim.job_id,
            state=state,
            code=None if outcome.error is None else outcome.error[0],
            num_output_tokens=len(job.token_ids),
        )
        self.finishers.finish(job.delivery, outcome)

    # Housekeeping threads.

    def _sweep(self) -> None:
        sweep(self._store, reannounce_grace_ms=int(self._settings.reannounce_grace_s * 1000))
        self._tell_celery()

    def _announce_due(self) -> None:
        """Let delayed jobs go: one small call, so that a due job waits for hardly a second."""
        while self._store.announce_due(limit=_DUE_LIMIT) == _DUE_LIMIT:
            pass

    def _watch(self) -> None:
        if self._must_stop():
            self._on_room()
        stalled_s = self.link.observe_progress()
        if stalled_s > self._settings.engine_stall_s:
            self.link.kill(f"no turn of its loop for {stalled_s:.1f} s")

    def _announce(self) -> None:
        ready = self.link.ready
        settings, config = self._settings, self._settings.engine_config
        self._store.announce_worker(
            WorkerInfo(
                name=self._name,
                model=settings.served_name,
                identity="" if ready is None else ready.identity,
                queues=settings.queues,
                max_model_len=config.max_model_len if ready is None else ready.max_model_len,
                max_num_seqs=config.max_num_seqs,
                started_at_ms=self._started_at_ms,
                state=self._state(),
                versions=keys.SUPPORTED_VERSIONS,
                stats=self.stats(),
            )
        )

    def _state(self) -> str:
        if self._draining:
            return "draining"
        return "starting" if self.link.ready is None else "ready"

    def stats(self) -> dict[str, int | float | str]:
        """Gauges for people and dashboards."""
        load, ready, drafts = self.link.load, self.link.ready, self.link.drafts
        stats: dict[str, int | float | str] = {
            "engine_pid": self.link.pid or 0,
            "jobs": len(self.jobs),
            "running": load.num_running,
            "waiting": load.num_waiting,
            "free_blocks": load.num_free_blocks,
            "blocks": 0 if ready is None else ready.num_blocks,
            "tokens_per_s": round(self.throughput.rate(), 1),
        }
        if drafts is not None:
            stats["draft_tokens"] = drafts.num_draft_tokens
            stats["accepted_tokens"] = drafts.num_accepted_tokens
        return stats


def _engine_spec(settings: WorkerSettings) -> EngineSpec:
    return EngineSpec(
        kind=settings.engine,
        model=settings.model,
        options=settings.engine_options(),
        log_level=settings.log_level,
        log_format=settings.log_format,
    )


def _ledger_config(settings: WorkerSettings) -> LedgerConfig:
    return LedgerConfig(
        lease_s=settings.lease_s,
        checkpoint_tokens=settings.checkpoint_tokens,
        checkpoint_interval_s=settings.checkpoint_interval_s,
        max_backlog_tokens=settings.max_backlog_tokens,
    )
