"""Writes the ends of jobs, so that one that Redis never takes holds back none of the others."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog
from redis.exceptions import RedisError, ResponseError

from batchmill.producer.protocol.calls import jobs as job_calls
from batchmill.producer.protocol.replies import CompleteStatus
from batchmill.producer.store.connection import is_server_fault
from batchmill.producer.store.job_store import JobStore
from batchmill.producer.store.replication import NotConfirmed

from .active_job import ActiveJob
from .job_end import JobEnd, result_refused_end, retrying_outcome
from .outcome import NOT_OURS, Outcome

_log = structlog.stdlib.get_logger("batchmill.end_writer")
#: Job ends written per round trip, and the bytes of their results: Redis closes a connection whose
#: unread input exceeds `client-query-buffer-limit`.
_MAX_ENDS_PER_CALL = 64
_MAX_BYTES_PER_CALL = 16 << 20
#: Calls that fail while Redis replies to others, until the ends are written one by one; and then
#: the calls with one end until it is given up.
_MAX_TRIES = 3
_WRITTEN = (CompleteStatus.OK, CompleteStatus.ALREADY_DONE)


@dataclass(slots=True, eq=False)
class _WaitingEnd:
    job: ActiveJob
    end: JobEnd
    #: Failed calls with this end alone.
    num_refusals: int = 0
    #: The end says only that the original one was refused.
    is_replaced: bool = False
    #: Calls that have written it, and that too few replicas have confirmed.
    num_unconfirmed: int = 0


class EndWriter:
    """Owns the ends that are not written yet. Not thread-safe: the record writer's thread calls it.

    Every write can be repeated, so after an error the same call is made again. If calls fail though
    Redis replies to others, one of the ends must be at fault: then each is written by itself, and
    the one that is refused again and again becomes a failure without a result.

    If ends must reach replicas, one that too few of them confirm is written again a few times
    before it is settled: after a failover that has lost it, the new primary gets it as well.
    """

    def __init__(self, store: JobStore, settle: Callable[[ActiveJob, Outcome], None]) -> None:
        """Bind to the store, and to the function that takes each job after its end is written."""
        self._store = store
        self._settle = settle
        self._ends: deque[_WaitingEnd] = deque()
        self._num_failures = 0

    def add(self, job: ActiveJob, end: JobEnd) -> None:
        """Take the end of a job; `write` writes it."""
        self._ends.append(_WaitingEnd(job, end))

    def write(self) -> None:
        """Write all ends.

        Raises:
            RedisError: some are not written; call again. It is a `ResponseError` if Redis replies
                to other calls.
        """
        try:
            self._write_together()
        except RedisError as error:
            if not self._is_call_at_fault(error):
                raise
            self._num_failures += 1
            if self._num_failures < _MAX_TRIES:
                raise ResponseError(f"{type(error).__name__}: {error}") from error
        else:
            self._num_failures = 0
            return
        self._write_one_by_one()

    def _write_together(self) -> None:
        while self._ends and self._write_batch(self._next_batch()):
            pass

    def _write_one_by_one(self) -> None:
        refusal: RedisError | None = None
        for waiting in tuple(self._ends):
            try:
                self._write_batch([waiting])
            except RedisError as error:
                if not self._is_call_at_fault(error):
                    raise
                refusal = error
                self._note_refusal(waiting, error)
        if refusal is not None:
            raise ResponseError(f"{type(refusal).__name__}: {refusal}") from refusal

    def _next_batch(self) -> list[_WaitingEnd]:
        batch: list[_WaitingEnd] = []
        num_bytes = 0
        for waiting in self._ends:
            num_bytes += len(waiting.end.result_object or waiting.end.result or "")
            if batch and (num_bytes > _MAX_BYTES_PER_CALL or len(batch) == _MAX_ENDS_PER_CALL):
                break
            batch.append(waiting)
        return batch

    def _write_batch(self, batch: Sequence[_WaitingEnd]) -> bool:
        """Write some ends; return False if too few replicas have confirmed them."""
        calls = []
        for waiting in batch:
            end, unsaved = waiting.end, waiting.job.unsaved()
            calls.append(
                job_calls.complete(
                    *(unsaved, end.state, end.result, end.error, end.used, end.retry_in_ms),
                    starts_over=end.starts_over,
                    result_object=end.result_object,
                    corpus=waiting.job.corpus,
                )
            )
        shortage: NotConfirmed | None = None
        try:
            statuses: Sequence[CompleteStatus] = self._store.run_all_confirmed(calls)
        except NotConfirmed as error:
            shortage, statuses = error, error.values
        for waiting, status in zip(batch, statuses, strict=True):
            if shortage is not None and status in _WRITTEN and _must_repeat(waiting, shortage):
                continue
            self._ends.remove(waiting)
            self._on_written(waiting, status)
        return shortage is None

    def _on_written(self, waiting: _WaitingEnd, status: CompleteStatus) -> None:
        job = waiting.job
        if status in _WRITTEN:
            self._settle(job, waiting.end.outcome)
        elif status is CompleteStatus.RETRYING:
            self._settle(job, retrying_outcome(waiting.end))
        elif status is CompleteStatus.GAP and not job.had_gap:
            job.mark_gap()
            self._ends.append(waiting)
        else:
            self._drop(job, status.value)

    def _note_refusal(self, waiting: _WaitingEnd, error: RedisError) -> None:
        """Count a refusal of one end, and give the end up after a few."""
        waiting.num_refusals += 1
        # A counter or index of another type is no fault of this end: it waits for the operator.
        if waiting.num_refusals < _MAX_TRIES or str(error).startswith("WRONGTYPE"):
            return
        if waiting.is_replaced:
            self._ends.remove(waiting)
            self._drop(waiting.job, "refused")
            return
        reason = f"{type(error).__name__}: {str(error)[:200]}"
        _log.error("end_refused", **waiting.job.log_ids, reason=reason)
        waiting.end = result_refused_end(waiting.end, _MAX_TRIES, reason)
        waiting.is_replaced = True
        waiting.num_refusals = 0

    def _drop(self, job: ActiveJob, why: str) -> None:
        """Leave a job to the sweep: its lease runs out unless another worker has it."""
        _log.warning("end_not_written", **job.log_ids, why=why)
        self._settle(job, NOT_OURS)

    def _is_call_at_fault(self, error: RedisError) -> bool:
        """Return whether Redis takes other calls. If not, the ends wait until it does."""
        if isinstance(error, ResponseError):
            return not is_server_fault(error)
        try:
            return bool(self._store.client.ping())
        except RedisError:
            return False


def _must_repeat(waiting: _WaitingEnd, shortage: NotConfirmed) -> bool:
    """Count a write that too few replicas have confirmed; return False after a few."""
    waiting.num_unconfirmed += 1
    if waiting.num_unconfirmed < _MAX_TRIES:
        return True
    _log.error(
        "end_not_replicated",
        **waiting.job.log_ids,
        reason=str(shortage),
        effect="it is reported all the same; if a failover loses it, the job runs again",
    )
    return False
