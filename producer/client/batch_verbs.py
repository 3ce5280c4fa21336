"""What the synchronous client does with batches."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator

from batchmill.producer.job.batch import BatchError, BatchRequest, BatchState, BatchStatus
from batchmill.producer.protocol import calls
from batchmill.producer.settings import ProducerSettings
from batchmill.producer.store import batch_calls
from batchmill.producer.store.batch_calls import raised
from batchmill.producer.store.batch_store import BatchEntry, BatchStore
from batchmill.producer.store.job_store import JobStore
from batchmill.producer.store.outcomes import unknown_batch
from batchmill.producer.store.read_ends import MAX_READ_AT_ONCE
from batchmill.producer.watch.many_jobs import EndWatch, TimeBudget
from batchmill.producer.watch.one_job import CONNECTION_ERRORS

from .batch_intake import FULL_PAUSE_S, BatchIntake, BatchLine, error_of, fails_batch
from .batching import OnRejected


def create_batch(
    store: JobStore,
    settings: ProducerSettings,
    lines: Iterable[BatchLine],
    request: BatchRequest,
    on_rejected: OnRejected | None,
) -> BatchStatus:
    """Open a batch, submit its lines as they are read, and seal it. As `Client.create_batch`."""
    batch = raised(store.run(batch_calls.create(request, settings)))
    is_resumable = request.idempotency_key is not None
    intake = BatchIntake(batch, settings, on_rejected=on_rejected, is_resumable=is_resumable)
    try:
        _submit(store, intake, lines)
        raised(store.run(batch_calls.seal(batch.batch_id, intake.num_lines)))
    except CONNECTION_ERRORS:
        raise  # nobody could be told now
    except Exception as error:
        if fails_batch(intake, error, is_resumable=is_resumable):
            cancel_batch(store, batch.batch_id, error_of(intake, error))
        raise
    return status_of(store, batch.batch_id)


def _submit(store: JobStore, intake: BatchIntake, lines: Iterable[BatchLine]) -> None:
    for line in lines:
        intake.add(line)
        if intake.must_be_sent:
            _send(store, intake)
    _send(store, intake)


def _send(store: JobStore, intake: BatchIntake) -> None:
    while not intake.is_empty and not intake.take(store.run_all(intake.calls())):
        intake.check()
        time.sleep(FULL_PAUSE_S)
    intake.check()


def status_of(store: JobStore, batch_id: str) -> BatchStatus:
    """Return where a batch is.

    Raises:
        UnknownBatch: there is none of this id.
    """
    status = BatchStore(store).load(batch_id)
    if status is None:
        raise unknown_batch(batch_id)
    return status


def cancel_batch(store: JobStore, batch_id: str, error: BatchError | None = None) -> BatchStatus:
    """Cancel what has not ended of a batch, and return where it is then.

    Where this is interrupted, the workers' sweep goes on with it.

    Raises:
        UnknownBatch: there is none of this id.
    """
    store.run(batch_calls.cancel(batch_id, error))
    status = status_of(store, batch_id)
    if status.status is not BatchState.CANCELLING:
        return status
    after = -1
    batches = BatchStore(store)
    while page := batches.page(batch_id, after):
        store.run_all([calls.cancel(job_id) for _, job_id in page])
        after = page[-1][0]
    return status_of(store, batch_id)


def batch_results(store: JobStore, batch_id: str, timeout_s: float | None) -> Iterator[BatchEntry]:
    """Yield the lines of a batch in their order. As `Client.batch_results`."""
    batches = BatchStore(store)
    budget = TimeBudget(timeout_s)
    after = -1
    while status_of(store, batch_id).status is BatchState.VALIDATING:
        time.sleep(min(FULL_PAUSE_S, budget.next_wait_s(0)))
    with contextlib.closing(EndWatch(store)) as watch:
        while page := batches.page(batch_id, after):
            watch.add(job_id for _, job_id in page)
            while len(watch):
                watch.next_ended(budget.next_wait_s(len(watch)))
            for start in range(0, len(page), MAX_READ_AT_ONCE):
                yield from batches.entries(page[start : start + MAX_READ_AT_ONCE])
            after = page[-1][0]
