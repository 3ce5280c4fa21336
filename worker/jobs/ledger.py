"""The one thread that writes to job records: checkpoints, renewals, ends and releases, in order."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog
from redis.exceptions import RedisError, ResponseError

from batchmill.producer.protocol import calls
from batchmill.producer.protocol.replies import CompleteStatus, JobState, ReleaseCause, WriteStatus
from batchmill.producer.store.job_store import JobStore

from .active_jobs import ActiveJob, ActiveJobs
from .delivery import NOT_OURS, Outcome
from .ends import JobEnd, released_outcome, stopped_end

_log = structlog.stdlib.get_logger("batchmill.ledger")
#: Waits after a call that Redis did not answer: doubled from the first to the last.
_FIRST_BACKOFF_S = 0.1
_LAST_BACKOFF_S = 2.0
#: Job ends written in one round trip.
_MAX_ENDS_A_CALL = 64


@dataclass(frozen=True, slots=True)
class LedgerConfig:
    """How often the ledger writes."""

    lease_s: float
    #: A job with that many unsaved tokens makes the batch due; raising it costs recomputation
    #: after a crash, lowering it costs calls.
    checkpoint_tokens: int
    #: Unsaved tokens wait at most this long, seconds.
    checkpoint_interval_s: float
    #: Unsaved tokens on board at which generation pauses, while Redis does not answer.
    max_backlog_tokens: int


class Ledger:
    """Owns every write to the records of the active jobs.

    One thread does them all, so a job's writes are in order without any lock, and a Redis that is
    slow or gone holds up nothing but them: generation goes on, up to a bounded backlog of tokens.
    Every write can be repeated, so after an error the same call is simply made again. A job whose
    fence was overtaken is dropped at once, and nothing is written for it any more.
    """

    def __init__(
        self,
        store: JobStore,
        jobs: ActiveJobs,
        config: LedgerConfig,
        *,
        read_progress: Callable[[], int],
        set_paused: Callable[[bool], None],
        settle: Callable[[ActiveJob, Outcome], None],
        on_fatal: Callable[[str], None],
    ) -> None:
        """Bind to the parts around it.

        Args:
            store: where the records are.
            jobs: the active jobs.
            config: how often to write.
            read_progress: turns of the engine's loop. Leases are renewed only while it moves.
            set_paused: stops or continues generation.
            settle: takes each job once, when its last write is done.
            on_fatal: told when the ledger cannot go on; without it no job would ever end.
        """
        self._store = store
        self._jobs = jobs
        self._config = config
        self._read_progress = read_progress
        self._set_paused = set_paused
        self._settle = settle
        self._on_fatal = on_fatal
        self._inbox: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._ends: deque[tuple[ActiveJob, JobEnd]] = deque()
        self._releases: deque[tuple[ActiveJob, ReleaseCause]] = deque()
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)
        self._closed = False
        self._paused = False
        self._backoff_s = 0.0
        self._saved_at = time.monotonic()
        self._renewed_at = time.monotonic()
        self._renewed_progress = -1

    def start(self) -> None:
        """Start writing."""
        self._thread.start()

    def close(self, timeout_s: float) -> None:
        """End the thread; what is not written by then is left to the sweepers."""
        self._inbox.put(self._close)
        self._thread.join(timeout_s)

    # From any thread. A job that is handed in has been taken out of the active jobs before.

    def is_due(self, job: ActiveJob) -> bool:
        """Whether a job has so many unsaved tokens that the batch is to be written."""
        return job.num_unsaved >= self._config.checkpoint_tokens

    def wake(self) -> None:
        """There is something to write before its time."""
        self._inbox.put(None)

    def end(self, job: ActiveJob, end: JobEnd) -> None:
        """Write a job's end."""
        self._inbox.put(lambda: self._ends.append((job, end)))

    def release(self, jobs: Sequence[ActiveJob], cause: ReleaseCause) -> None:
        """Write the last tokens of jobs and give them back to their queues."""
        self._inbox.put(lambda: self._releases.extend((job, cause) for job in jobs))

    def stop(self, job: ActiveJob, state: JobState) -> None:
        """Stop an active job, which then ends in a state with the output it has."""
        self._inbox.put(lambda: self._stop(job, state))

    # In the ledger's thread.

    def _run(self) -> None:
        try:
            while not self._closed:
                self._turn()
        except Exception:
            _log.exception("ledger_failed")
            self._on_fatal("the ledger failed; its jobs go on elsewhere when their leases run out")

    def _turn(self) -> None:
        self._take_inbox()
        try:
            self._write()
        except RedisError as error:
            self._back_off(error)
        else:
            self._backoff_s = 0.0
            self._pause(False)

    def _take_inbox(self) -> None:
        """Take what came in; while Redis does not answer, wait out the backoff as well."""
        # However rarely tokens are to be saved, leases are looked after in time.
        pause_s = min(self._config.checkpoint_interval_s, self._config.lease_s / 6)
        until = time.monotonic() + (self._backoff_s or pause_s)
        waits = True
        while not self._closed:
            try:
                wait_s = max(0.0, until - time.monotonic()) if waits else 0.0
                message = self._inbox.get(timeout=wait_s) if wait_s else self._inbox.get_nowait()
            except queue.Empty:
                return
            if message is not None:
                message()
            waits = self._backoff_s > 0.0

    def _write(self) -> None:
        """Do all that is due.

        Raises:
            RedisError: a call was not answered, so the rest waits as well; or one was refused, and
                the rest was tried all the same: a full Redis refuses tokens, but not a job's end.
        """
        refusal: ResponseError | None = None
        self._enforce_limits(time.monotonic())
        for write in (self._write_ends, self._write_releases, self._checkpoint, self._renew):
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

    def _checkpoint(self) -> None:
        now = time.monotonic()
        dirty = [job for job in self._jobs.snapshot() if job.num_unsaved]
        is_time = now - self._saved_at >= self._config.checkpoint_interval_s
        if not is_time and not any(self.is_due(job) for job in dirty):
            return
        writes = [job.unsaved() for job in dirty]
        statuses = self._store.checkpoint(writes, lease_ms=self._lease_ms)
        for job, write, status in zip(dirty, writes, statuses, strict=True):
            if status is WriteStatus.GAP:
                self._on_gap(job)
            elif status is not WriteStatus.FENCED:
                job.note_saved(write)
            self._obey(job, status)
        self._saved_at = now

    def _renew(self) -> None:
        now = time.monotonic()
        if now - self._renewed_at < self._config.lease_s / 3:
            return
        progress = self._read_progress()
        if progress != self._renewed_progress:  # a stuck engine loses its jobs by itself
            jobs = self._jobs.snapshot()
            statuses = self._store.renew([job.held for job in jobs], lease_ms=self._lease_ms)
            for job, status in zip(jobs, statuses, strict=True):
                self._obey(job, status)
            # Only now: after a long step, leases are extended as soon as it has ended.
            self._renewed_at, self._renewed_progress = now, progress

    @property
    def _lease_ms(self) -> int:
        return int(self._config.lease_s * 1000)

    def _obey(self, job: ActiveJob, status: WriteStatus) -> None:
        if status is WriteStatus.FENCED:
            self._drop(job, "fenced")
        elif status is WriteStatus.CANCEL_REQUESTED and job.stopping is None:
            self._stop(job, JobState.CANCELLED)

    def _stop(self, job: ActiveJob, state: JobState) -> None:
        job.stopping = state
        if not self._jobs.abort(job) and self._jobs.remove(job):
            self._ends.append((job, stopped_end(job)))

    def _drop(self, job: ActiveJob, why: str) -> None:
        """Forget a job that is not ours any more."""
        self._jobs.abort(job)
        if self._jobs.remove(job):
            _log.warning("job_dropped", job_id=job.claim.job_id, fence=job.claim.fence, why=why)
            self._settle(job, NOT_OURS)

    def _on_gap(self, job: ActiveJob) -> None:
        """Send everything again once; tokens that disagree even so are nobody's to write."""
        if job.had_gap:
            self._drop(job, "stored tokens disagree")
        job.had_gap = True
        job.num_saved = 0

    def _write_ends(self) -> None:
        while self._ends:
            batch = [self._ends[i] for i in range(min(len(self._ends), _MAX_ENDS_A_CALL))]
            statuses = self._store.run_all(
                [
                    calls.complete(job.unsaved(), end.state, end.result, end.error, end.num_tokens)
                    for job, end in batch
                ]
            )
            for (job, end), status in zip(batch, statuses, strict=True):
                self._ends.popleft()
                self._on_end_written(job, end, status)

    def _on_end_written(self, job: ActiveJob, end: JobEnd, status: CompleteStatus) -> None:
        if status in (CompleteStatus.OK, CompleteStatus.ALREADY_DONE):
            self._settle(job, end.outcome)
        elif status is CompleteStatus.GAP and not job.had_gap:
            job.had_gap = True
            job.num_saved = 0
            self._ends.append((job, end))
        else:
            _log.warning("end_not_written", job_id=job.claim.job_id, why=status.value)
            self._settle(job, NOT_OURS)

    def _write_releases(self) -> None:
        for cause in ReleaseCause:
            jobs = [job for job, why in self._releases if why is cause]
            if not jobs:
                continue
            writes = [job.unsaved() for job in jobs if job.num_unsaved]
            with contextlib.suppress(ResponseError):  # refused tokens are computed again
                self._store.checkpoint(writes, lease_ms=self._lease_ms)
            statuses = self._store.release([job.held for job in jobs], cause=cause)
            self._releases = deque(item for item in self._releases if item[1] is not cause)
            for job, status in zip(jobs, statuses, strict=True):
                self._settle(job, released_outcome(status, cause))

    def _close(self) -> None:
        self._closed = True
