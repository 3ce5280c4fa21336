"""Puts the parts of a worker together: starts them, connects them and drains them."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from functools import partial

import structlog

from batchmill.producer.protocol import keys
from batchmill.producer.protocol.replies import CancelStatus, JobState, ReleaseCause
from batchmill.producer.store.job_store import JobStore
from batchmill.worker.corpora.corpus_keeper import LOOK_INTERVAL_S as CORPUS_INTERVAL_S
from batchmill.worker.corpora.corpus_keeper import CorpusKeeper
from batchmill.worker.engine_host.engine_link import EngineLink
from batchmill.worker.engine_host.messages import Finished, Ready, StepReport
from batchmill.worker.health.report import REPORT_INTERVAL_S
from batchmill.worker.service_errors import MetricsFailed
from batchmill.worker.settings import WorkerSettings

from .active_job import ActiveJob
from .active_jobs import ActiveJobs
from .attempt_trace import NO_TRACES, JobTraces
from .claim_share import LOOK_INTERVAL_S as SHARE_INTERVAL_S
from .claim_share import ClaimShare
from .engine_breaker import EngineBreaker
from .engine_spec import engine_spec
from .engine_watchdog import EngineWatchdog
from .fair_part import OutputShare
from .fleet_turns import FleetTurns
from .heartbeat import Heartbeat
from .held_prefixes import HeldPrefixes
from .high_intake import LOOK_INTERVAL_S, HighIntake
from .inbox_mover import PAUSE_S, WAIT_S, InboxMover
from .intake_gate import IntakeGate
from .job_claimer import JobClaimer
from .job_end import JobEnd, bounded_end, finished_end, refused_end, with_retry
from .leaving import LeavingJobs
from .lost_workers import put_back_jobs_of_lost_workers
from .media_setup import media_threads
from .object_threads import ObjectThreads
from .outcome import Outcome
from .outcome_reporter import OutcomeReporter
from .payload_sweep import payload_sweeps
from .periodic_thread import PeriodicThread
from .recent_times import RecentTimes
from .record_writer import RecordWriter, RecordWriterConfig
from .saved_output import SavedOutput
from .session_connection import SessionConnection
from .sweeper import Sweeper, announce_delayed_jobs
from .takeover import LOOK_INTERVAL_S as TAKEOVER_INTERVAL_S
from .takeover import Takeover
from .throughput import Throughput
from .time_slices import LOOK_INTERVAL_S as SLICE_INTERVAL_S
from .time_slices import TimeSlices
from .worker_health import WorkerHealth
from .worker_metrics import WorkerMetrics

_log = structlog.stdlib.get_logger("batchmill.runtime")
_WATCH_INTERVAL_S = 0.1
_SWEEP_JITTER = 0.3
_LOST_WORKERS_INTERVAL_S = 0.5
_DUE_INTERVAL_S = 0.5
MISSING_RESULTS_INTERVAL_S = 0.5
#: Pause between two calls that wait for plain Celery tasks.
_TASKS_PAUSE_S = 0.01
#: Time for the last steps of a shutdown, which do not depend on the engine.
_CLOSE_GRACE_S = 2.0


class WorkerRuntime:
    """Owns the parts of one worker and connects them.

    `JobClaimer` claims a job, `ActiveJobs` submits it to the engine, `EngineLink` reports its
    tokens and its end, `RecordWriter` writes them, and `OutcomeReporter` reports to Celery.
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
        write_missing_results: Callable[[], None] = lambda: None,
        move_tasks: Callable[[], None] = lambda: None,
        consumes_all: Callable[[], bool] = lambda: True,
        traces: JobTraces = NO_TRACES,
    ) -> None:
        """Put the parts together without starting them.

        Args:
            settings: of the worker.
            store: the job store.
            name: Celery node name, the owner in claims.
            on_room: called from any thread when there may be room for another job.
            on_fatal: called if the engine cannot start, if it dies with one job after another, or
                if the record writer fails.
            must_stop: whether Celery was asked to shut down. Its event loop may be waiting for a
                message then; `on_room` wakes it.
            write_missing_results: called twice a second; see `MissingResults`.
            move_tasks: called all the time; see `TaskMover`.
            consumes_all: whether Celery takes messages from all queues of the model.
            traces: makes the traces of attempts.
        """
        self._settings = settings
        self._store = store
        self._name = name
        self._session = keys.new_session(name)
        self._on_room = on_room
        self._on_fatal = on_fatal
        self._must_stop = must_stop
        self._write_missing_results = write_missing_results
        self._move_tasks = move_tasks
        self._consumes_all = consumes_all
        self._draining = False
        #: The settings or the model cannot work.
        self.has_start_failed = False
        self._rng = random.Random()
        self._throughput = Throughput()
        self.metrics = WorkerMetrics(settings)
        self._times = RecentTimes()
        self._breaker = EngineBreaker()
        self._connection = SessionConnection(str(settings.broker_url), self._session)
        self.link = EngineLink(engine_spec(settings), self)
        self._watchdog = EngineWatchdog(self.link, stall_s=settings.engine_stall_s)
        self.jobs = ActiveJobs(self.link.send)
        self._saved = SavedOutput(self.link.send)
        self.reporter = OutcomeReporter(settings.finisher_threads)
        self._objects = ObjectThreads(store, self.metrics.jobs, on_room=on_room)
        self._media = media_threads(settings, store, self.link, self.metrics.jobs)
        self.writer = self._make_writer()
        self._prefixes = HeldPrefixes(
            is_on=settings.prefix_claims and settings.engine_config.enable_prefix_caching
        )
        self._corpora = CorpusKeeper(store, self.link.send)
        self.claimer = self._make_claimer(traces)
        self._share = ClaimShare(
            *(settings, store, self.jobs, self.metrics.speed), name=name, on_room=on_room
        )
        self.gate = self._make_gate()
        self.high = HighIntake(
            store,
            self.gate,
            queue=settings.queues[0],
            num_places=settings.high_places,
            on_room=on_room,
        )
        #: When this worker does what any worker may do for all.
        self.turns = FleetTurns(store.num_live_sessions)
        output_share = OutputShare()
        self._leaving = LeavingJobs(self.writer, self.metrics.jobs, output_share)
        self.takeover = self._make_takeover(output_share)
        self._slices = TimeSlices(settings, store, self.jobs, self.gate, self.writer, output_share)
        self._heartbeat = self._make_heartbeat()
        self.health = WorkerHealth(
            self.link,
            self._heartbeat,
            name=name,
            engine_stall_s=settings.engine_stall_s,
            is_draining=lambda: self._draining,
        )
        self._inbox = InboxMover(
            settings, store, self._session, self.connected_s, self.turns.turn(WAIT_S)
        )
        self._heartbeat_thread = PeriodicThread(
            "heartbeat", self._heartbeat.send, settings.heartbeat_interval_s
        )
        self._threads = self._make_periodic_threads()

    def start(self) -> None:
        """Start all threads and the engine; return at once."""
        self._serve_metrics()
        self._connection.start()
        self.reporter.start()
        self.writer.start()
        self.link.start()
        for thread in self._threads:
            thread.start()

    def _serve_metrics(self) -> None:
        try:
            self.metrics.serve(self.link, self.jobs, self._heartbeat, self.health.probe)
        except MetricsFailed as error:
            self.on_start_failed(str(error))

    @property
    def session(self) -> str:
        """This run of the worker, as scripts know it."""
        return self._session

    def connected_s(self) -> float:
        """Return how long the session has been connected, in seconds; 0 while it is not."""
        return self._connection.connected_s

    def stats(self) -> dict[str, int | float | str]:
        """Return gauges for people and dashboards."""
        return self._heartbeat.stats()

    def begin_drain(self) -> None:
        """Take no more jobs, and let the engine end after its step. Return at once."""
        if self._draining:
            return
        self._draining = True
        self.gate.close()
        self.claimer.close()
        self._inbox.close()
        self._heartbeat_thread.call_now()
        self.link.shut_down()

    def is_drained(self) -> bool:
        """Return whether every job has been given back or written to its end."""
        return self.reporter.num_open == 0 and not self.link.is_alive

    def finish_drain(self, timeout_s: float) -> None:
        """Wait for the remaining writes, then end all threads. Call `begin_drain` before."""
        deadline = time.monotonic() + timeout_s
        self.link.join(max(0.1, timeout_s / 2))
        if not self.reporter.wait_idle(max(0.1, deadline - time.monotonic())):
            _log.error("drain_incomplete", num_jobs=self.reporter.num_open)
        self.claimer.drop_parked()
        self.writer.close(_CLOSE_GRACE_S)
        self.reporter.close(_CLOSE_GRACE_S)
        for thread in self._threads:
            thread.close(_CLOSE_GRACE_S)
        self._connection.close(_CLOSE_GRACE_S)
        self.metrics.close()
        self.health.remove()
        # After the connection: from then on, nothing more is handed to this session. And after all
        # that needs no Redis, which may be away.
        self.takeover.stop_asking()
        self._heartbeat.remove()
        self._store.close()

    def cancel(self, job_id: str) -> None:
        """Cancel a job that was revoked in Celery, whether it runs here, waits or runs elsewhere.

        Raises:
            redis.exceptions.RedisError: Redis did not reply.
        """
        reply = self._store.cancel(job_id)
        job = self.jobs.find(job_id)
        if job is not None and reply.status is CancelStatus.CANCELLING:
            self.writer.stop(job, JobState.CANCELLED)

    # Reports of the engine link, in its thread.

    def on_ready(self, ready: Ready) -> None:
        """Submit the pending jobs to a new engine, and open the gate.

        Jobs that were claimed for an engine of another identity are given back.
        """
        self._watchdog.note_new_engine()
        self._corpora.note_new_engine()
        others = self.jobs.engine_ready(ready.identity)
        self.writer.release(others, ReleaseCause.DRAIN)
        self._heartbeat_thread.call_now()
        self._on_room()

    def on_report(self, report: StepReport) -> None:
        """Pass a step's tokens and ends to the jobs and the record writer."""
        self.metrics.note_report(report)
        is_due = self._receive_outputs(report)
        for request_id, state in report.plan_states.items():
            job = self.jobs.get(request_id)
            if job is not None:
                job.plan_state = state
        self._saved.note_received(report)
        if report.has_waited:
            self.writer.note_engine_waited()
        for refused in report.refused:
            self.metrics.note_refused(refused)
            job = self.jobs.get(refused.request_id)
            if job is not None and self.jobs.remove(job):
                self.writer.end(job, with_retry(job, refused_end(refused), self._rng))
        for finished in report.finished:
            self._on_finished(finished)
        if is_due:
            self.writer.wake()
        self.jobs.submit_pending()
        if self.gate.has_opened():
            self._on_room()

    def on_gone(self, *, orderly: bool) -> None:
        """Give back the jobs that were in the engine, and those that were pending."""
        in_engine, pending = self.jobs.engine_gone()
        self._saved.note_engine_gone()
        self._prefixes.clear()
        self._heartbeat_thread.call_now()
        was_stuck = self._watchdog.take_kill()
        is_orderly = orderly or self._draining
        self.metrics.note_engine_gone(None if is_orderly else "stall" if was_stuck else "death")
        # An engine that had to be killed while the worker drains died of the shutdown, not of a
        # job.
        if is_orderly:
            self.writer.release([*in_engine, *pending], ReleaseCause.DRAIN)
            return
        why = self._breaker.note_death(job.claim.job_id for job in in_engine)
        if why is not None:
            _log.critical("worker_at_fault", reason=why)
            self.writer.release([*in_engine, *pending], ReleaseCause.DRAIN)
            self._on_fatal(why)
            return
        cause = ReleaseCause.ENGINE_STALL if was_stuck else ReleaseCause.ENGINE_DEATH
        self.writer.release(in_engine, cause)
        self.writer.release(pending, ReleaseCause.NOT_STARTED)

    def on_start_failed(self, message: str) -> None:
        """End the worker: there will be no engine."""
        self.has_start_failed = True
        _log.critical("engine_cannot_start", reason=message)
        self._on_fatal(message)

    def _receive_outputs(self, report: StepReport) -> bool:
        """Pass new tokens to their jobs; return whether they make a checkpoint due.

        This runs for each token of each job, so what can be counted once per report is.
        """
        is_due, received = False, []
        for request_id, token_ids, text, thoughts in report.new_outputs:
            job = self.jobs.get(request_id)
            if job is not None:
                received.append((job, len(token_ids)))
                job.receive(token_ids, text, thoughts)
                is_due = is_due or self.writer.is_checkpoint_due(job)
        num_tokens = sum(number for _, number in received)
        self.metrics.note_tokens(received, report.at_s)
        self._throughput.count(num_tokens)
        self._breaker.note_tokens(num_tokens)
        return is_due

    def _on_finished(self, finished: Finished) -> None:
        job = self.jobs.get(finished.request_id)
        if finished.finish_reason not in ("abort", "error"):
            self._breaker.note_finished()
        if job is not None and self.jobs.remove(job):
            job.trace.finished(job, finished)
            self._prefixes.note_finished(job, finished)
            if self._leaving.finished(job, finished):
                return
            self.gate.observe_prompt(finished.num_prompt_tokens)
            self.metrics.note_finished(job, finished)
            self._times.note(job)
            model = self._settings.served_name
            end = finished_end(job, finished, worker=self._name, model=model)
            end = bounded_end(end, self._settings.max_result_bytes)
            self._objects.write_result(job, end, self._write_end)

    def _write_end(self, job: ActiveJob, end: JobEnd) -> None:
        self.writer.end(job, with_retry(job, end, self._rng))

    def _settle(self, job: ActiveJob, outcome: Outcome) -> None:
        """Report a job's outcome, after its last write."""
        code = None if outcome.error is None else outcome.error[0]
        self.metrics.jobs.note_settled(outcome.state, code)
        _log.info("job_settled", **job.log_ids, **outcome.log_fields(len(job.token_ids)))
        job.trace.end(job, outcome)
        self.reporter.report(job.task, outcome)

    # Actions of the periodic threads.

    def _watch_engine(self) -> None:
        """Kill an engine whose loop stands still; wake the event loop if Celery has to stop."""
        if self._must_stop():
            self._on_room()
        self._saved.release_if_redis_is_away()
        self._watchdog.look()

    # Construction.

    def _make_writer(self) -> RecordWriter:
        settings = self._settings
        config = RecordWriterConfig(
            lease_s=settings.lease_s,
            checkpoint_tokens=settings.checkpoint_tokens,
            checkpoint_interval_s=settings.checkpoint_interval_s,
            max_backlog_tokens=settings.max_backlog_tokens,
        )
        return RecordWriter(
            self._store,
            self.jobs,
            config,
            self._saved,
            is_engine_stuck=lambda: self._watchdog.is_engine_stuck,
            set_paused=self.link.set_paused,
            settle=self._settle,
            on_fatal=self._on_fatal,
            note_lag=self.metrics.jobs.checkpoint_lag.observe,
            waiting_jobs=lambda: [*self._objects.jobs_at_store(), *self._media.jobs()],
        )

    def _make_claimer(self, traces: JobTraces) -> JobClaimer:
        return JobClaimer(
            self._settings,
            self._store,
            self.jobs,
            self.writer,
            self.reporter,
            owner=self._name,
            session=self._session,
            meter=self.metrics.jobs,
            read_identity=lambda: None if self.link.ready is None else self.link.ready.identity,
            traces=traces,
            objects=self._objects,
            media=self._media,
            on_room=self._on_room,
            prefixes=self._prefixes,
            corpora=self._corpora,
        )

    def _make_gate(self) -> IntakeGate:
        config = self._settings.engine_config
        return IntakeGate(
            self.link,
            self.jobs,
            self.claimer,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=config.max_num_batched_tokens,
            has_share=self._share.has_reached,
        )

    def _make_takeover(self, share: OutputShare) -> Takeover:
        return Takeover(
            self._settings,
            self._store,
            self.link,
            self.jobs,
            self.gate,
            self.writer,
            self.metrics.speed,
            session=self._session,
            consumes_all=self._consumes_all,
            share=share,
            turns=self.turns,
        )

    def _make_heartbeat(self) -> Heartbeat:
        return Heartbeat(
            self._settings,
            self._store,
            self.link,
            self.jobs,
            self._throughput,
            self.metrics.speed,
            self._times,
            name=self._name,
            session=self._session,
            connection=self._connection,
            is_draining=lambda: self._draining,
        )

    def _make_periodic_threads(self) -> list[PeriodicThread]:
        sweep, sweep_s = Sweeper(self._store, self._settings).sweep, self._settings.sweep_interval_s
        announce = partial(announce_delayed_jobs, self._store)
        put_back = partial(
            put_back_jobs_of_lost_workers, self._store, self._session, self._connection
        )
        turn = self.turns.turn
        sweeps = payload_sweeps(self._store, self.metrics.jobs)
        return [
            *(PeriodicThread("payloads", each, sweep_s, jitter=_SWEEP_JITTER) for each in sweeps),
            self._heartbeat_thread,
            PeriodicThread("tasks", self._move_tasks, _TASKS_PAUSE_S),
            PeriodicThread("inbox", self._inbox.move_documents, PAUSE_S),
            PeriodicThread("high-intake", self.high.look, LOOK_INTERVAL_S, jitter=_SWEEP_JITTER),
            PeriodicThread(
                "takeover", self.takeover.look, TAKEOVER_INTERVAL_S, jitter=_SWEEP_JITTER
            ),
            PeriodicThread("corpora", self._corpora.look, CORPUS_INTERVAL_S, jitter=_SWEEP_JITTER),
            PeriodicThread("slices", self._slices.look, SLICE_INTERVAL_S, jitter=_SWEEP_JITTER),
            PeriodicThread("share", self._share.look, SHARE_INTERVAL_S, jitter=_SWEEP_JITTER),
            PeriodicThread("health", self.health.write, REPORT_INTERVAL_S),
            PeriodicThread("watchdog", self._watch_engine, _WATCH_INTERVAL_S),
            PeriodicThread(
                "delays",
                turn(_DUE_INTERVAL_S).limited(announce),
                _DUE_INTERVAL_S,
                jitter=_SWEEP_JITTER,
            ),
            PeriodicThread(
                "lost-workers",
                turn(_LOST_WORKERS_INTERVAL_S).limited(put_back),
                _LOST_WORKERS_INTERVAL_S,
                jitter=_SWEEP_JITTER,
            ),
            PeriodicThread(
                "missing-results",
                self._write_missing_results,
                MISSING_RESULTS_INTERVAL_S,
                jitter=_SWEEP_JITTER,
            ),
            PeriodicThread("sweeper", turn(sweep_s).limited(sweep), sweep_s, jitter=_SWEEP_JITTER),
        ]
