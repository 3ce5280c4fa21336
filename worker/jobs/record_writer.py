"""The one thread that writes to the records of active jobs, in order: tokens, leases, ends."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import structlog
from redis.exceptions import RedisError, ResponseError

from batchmill.producer.protocol.calls import jobs as job_calls
from batchmill.producer.protocol.replies import JobState, ReleaseCause, WriteStatus
from batchmill.producer.store.job_store import JobStore

from .active_job import ActiveJob, Release
from .active_jobs import ActiveJobs
from .checkpoints import Checkpoints
from .end_writer import EndWriter
from .job_end import JobEnd, released_outcome, stopped_end
from .lease_renewal import LeaseRenewal
from .outcome import NOT_OURS, Outcome
from .saved_output import SavedOutput

_log = structlog.stdlib.get_logger("batchmill.record_writer")
#: Waits after a call without a reply from Redis: doubled from the first to the last.
_FIRST_BACKOFF_S = 0.1
_LAST_BACKOFF_S = 2.0


@dataclass(frozen=True, slots=True)
class RecordWriterConfig:
    """How often the record writer writes."""

    lease_s: float
    #: Unsaved tokens of one job that make a checkpoint of all jobs due. Raising it costs
    #: recomputation after a crash, lowering it costs calls.
    checkpoint_tokens: int
    #: Longest wait of an unsaved token, seconds.
    checkpoint_interval_s: float
    #: Unsaved tokens of all active jobs at which generation pauses while Redis does not reply.
    max_backlog_tokens: int


class RecordWriter:
    """Owns every write to the records of the active jobs.

    One thread does them all, so a job's writes are in order without a lock. Generation runs ahead
    of them by a checkpoint interval and a step; while Redis does not reply, it continues up to a
    bounded backlog of tokens. Every write can be repeated, so after an error the same call is made
    again. A job whose fence was overtaken is dropped at once, and nothing more is written for it.
    """

    def __init__(
        self,
        store: JobStore,
        jobs: ActiveJobs,
        config: RecordWriterConfig,
        saved: SavedOutput,
        *,
        is_engine_stuck: Callable[[], bool],
        set_paused: Callable[[bool], None],
        settle: Callable[[ActiveJob, Outcome], None],
        on_fatal: Callable[[str], None],
        note_lag: Callable[[float], None] = lambda lag_s: None,
        waiting_jobs: Callable[[], Sequence[ActiveJob]] = tuple,
    ) -> None:
        """Bind to the parts around it.

        Args:
            store: holds the records.
            jobs: the active jobs.
            config: how often to write.
            saved: tells the engine what is saved.
            is_engine_stuck: whether the engine is about to be killed. Leases are not renewed then.
            set_paused: pauses or continues generation.
            settle: takes each job once, after its last write.
            on_fatal: called if the thread fails, because then no job would ever end.
            note_lag: takes the age of the oldest token of each checkpoint, seconds.
            waiting_jobs: returns jobs that are not active, but wait for the object store or for
                their media.
        """
        self._store = store
        self._jobs = jobs
        self._config = config
        self._saved = saved
        self._set_paused = set_paused
        self._settle = settle
        self._on_fatal = on_fatal
        self._checkpoints = Checkpoints(
            store,
            jobs,
            saved,
            num_tokens=config.checkpoint_tokens,
            interval_s=config.checkpoint_interval_s,
            lease_ms=int(config.lease_s * 1000),
            note_lag=note_lag,
        )
        self._leases = LeaseRenewal(
            store,
            jobs,
            lease_s=config.lease_s,
            is_engine_stuck=is_engine_stuck,
            waiting_jobs=waiting_jobs,
        )
        self._messages: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._ends = EndWriter(store, settle)
        self._releases: deque[tuple[ActiveJob, Release]] = deque()
        self._thread = threading.Thread(target=self._run, name="record-writer", daemon=True)
        self._closed = False
        self._paused = False
        self._backoff_s = 0.0

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self, timeout_s: float) -> None:
        """End the thread; the sweep takes care of all that is not written in time."""
        self._messages.put(self._close)
        self._thread.join(timeout_s)

    # From any thread. A job passed to `end` or `release` was removed from the active jobs before.

    def is_checkpoint_due(self, job: ActiveJob) -> bool:
        """Return whether a job has enough unsaved tokens to make a checkpoint due."""
        return self._checkpoints.is_due(job)

    def note_engine_waited(self) -> None:
        """Note that the engine had to wait for a checkpoint."""
        self._checkpoints.note_engine_waited()

    def wake(self) -> None:
        """Make the thread write what is due without waiting for its interval."""
        self._messages.put(None)

    def end(self, job: ActiveJob, end: JobEnd) -> None:
        """Write a job's end."""
        self._messages.put(lambda: self._ends.add(job, end))

    def release(self, jobs: Sequence[ActiveJob], cause: ReleaseCause) -> None:
        """Write the last tokens of jobs and give them back to their queues."""
        how = Release(cause)
        self._messages.put(lambda: self._releases.extend((job, how) for job in jobs))

    def begin_release(self, jobs: Sequence[ActiveJob], how: Release) -> None:
        """Stop active jobs to give them back; `finish_release` takes each when it has stopped."""
        self._messages.put(lambda: self._begin_release(jobs, how))

    def finish_release(self, job: ActiveJob, how: Release) -> None:
        """Write the last tokens of a job that was stopped, and give it back."""
        self._messages.put(lambda: self._releases.append((job, how)))

    def stop(self, job: ActiveJob, state: JobState) -> None:
        """Stop an active job; it then ends in a state, with the output that it has."""
        self._messages.put(lambda: self._stop(job, state))

    # In the writer's thread.

    def _run(self) -> None:
        try:
            while not self._closed:
                self._take_messages()
                self._saved.note_writing()
                try:
                    self._write_due()
                except RedisError as error:
                    self._saved.note_written(failed=True)
                    self._back_off(error)
                else:
                    self._saved.note_written(failed=False)
                    self._backoff_s = 0.0
                    self._pause(False)
        except Exception:
            _log.exception("record_writer_failed")
            self._on_fatal(
                "the record writer failed; other workers continue its jobs when their leases expire"
            )

    def _take_messages(self) -> None:
        """Take the messages that came in; while Redis does not reply, wait out the backoff too."""
        # Wake up often enough to renew leases even if checkpoints are rare.
        pause_s = min(self._config.checkpoint_interval_s, self._config.lease_s / 6)
        until = time.monotonic() + (self._backoff_s or pause_s)
        waits = True
        while not self._closed:
            try:
                wait_s = max(0.0, until - time.monotonic()) if waits else 0.0
                message = (
                    self._messages.get(timeout=wait_s) if wait_s else self._messages.get_nowait()
                )
            except queue.Empty:
                return
            if message is not None:
                message()
            waits = self._backoff_s > 0.0

    def _write_due(self) -> None:
        """Make all writes that are due.

        Raises:
            RedisError: a call had no reply, so the later ones wait as well; or one was refused and
                the others were tried all the same, because a full Redis refuses tokens, but not a
                job's end.
        """
        refusal: ResponseError | None = None
        self._enforce_limits(time.monotonic())
        for write in (
            self._ends.write,
            self._write_releases,
            self._write_checkpoint,
            self._renew_leases,
        ):
            try:
                write()
            except ResponseError as error:
                refusal = error
        if refusal is not None:
            raise refusal

    def _back_off(self, error: RedisError) -> None:
        if not self._backoff_s:
            _log.warning("redis_unavailable", error=type(error).__name__, reason=str(error)[:200])
        self._backoff_s = min(max(2 * self._backoff_s, _FIRST_BACKOFF_S), _LAST_BACKOFF_S)
        backlog = sum(job.num_unsaved for job in self._jobs.snapshot())
        if backlog > self._config.max_backlog_tokens:
            self._pause(True)

    def _pause(self, paused: bool) -> None:
        if paused != self._paused:
            self._paused = paused
            _log.warning("generation_paused" if paused else "generation_continues")
            self._set_paused(paused)

    def _enforce_limits(self, now: float) -> None:
        for job in self._jobs.snapshot():
            if job.limit is not None and now >= job.limit.at and job.stopping is None:
                self._stop(job, job.limit.state)

    def _write_checkpoint(self) -> None:
        self._obey(self._checkpoints.write_if_due())

    def _renew_leases(self) -> None:
        self._obey(self._leases.renew_if_due())

    def _obey(self, written: Iterable[tuple[ActiveJob, WriteStatus]]) -> None:
        """Act on the store's replies to writes."""
        for job, status in written:
            if status is WriteStatus.FENCED:
                self._drop(job, "fenced")
            elif status is WriteStatus.GAP:
                self._on_gap(job)
            elif status is WriteStatus.CANCEL_REQUESTED and job.stopping is None:
                self._stop(job, JobState.CANCELLED)

    def _stop(self, job: ActiveJob, state: JobState) -> None:
        job.stopping = state
        if not self._jobs.abort(job) and self._jobs.remove(job):
            self._ends.add(job, stopped_end(job))

    def _begin_release(self, jobs: Sequence[ActiveJob], how: Release) -> None:
        for job in jobs:
            if job.stopping is None and job.leaving is None:
                job.leaving = how if self._jobs.abort(job) else None

    def _drop(self, job: ActiveJob, why: str) -> None:
        """Forget a job that is no longer ours."""
        self._jobs.abort(job)
        if self._jobs.remove(job):
            _log.warning("job_dropped", **job.log_ids, fence=job.claim.fence, why=why)
            self._settle(job, NOT_OURS)

    def _on_gap(self, job: ActiveJob) -> None:
        """Send all tokens again, once; if they disagree even then, drop the job."""
        if job.had_gap:
            self._drop(job, "stored tokens disagree")
        job.mark_gap()

    def _write_releases(self) -> None:
        for how in dict.fromkeys(how for _, how in self._releases):
            jobs = [job for job, each in self._releases if each == how]
            with contextlib.suppress(ResponseError):  # refused tokens are computed again
                self._checkpoints.write_last(jobs)
            held = [job.held for job in jobs]
            if how.taker is None:
                statuses = self._store.release(held, cause=how.cause)
            else:
                statuses = self._store.run(job_calls.hand_over(held, how.taker))
            self._releases = deque(item for item in self._releases if item[1] != how)
            for job, status in zip(jobs, statuses, strict=True):
                self._settle(job, released_outcome(status, how.cause))

    def _close(self) -> None:
        self._closed = True
