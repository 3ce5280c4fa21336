# Generated from async_batch_verbs.py by tests/structure/generate_sync.py: change that file.
"""The client's verbs on batches: create, status, newest, cancel, results."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator, Iterable

from batchmill.producer.job.batch import BatchError, BatchRequest, BatchState, BatchStatus
from batchmill.producer.protocol.calls import jobs as job_calls
from batchmill.producer.settings import ProducerSettings
from batchmill.producer.store import batch_calls
from batchmill.producer.store.batch_calls import raise_if_error
from batchmill.producer.store.batches import (
    BatchEntry,
    batch_entries,
    batch_page,
    batches,
    newest_batch_ids,
)
from batchmill.producer.store.ended_jobs import MAX_ENDS_AT_ONCE
from batchmill.producer.store.reply_errors import unknown_batch_error
from batchmill.producer.store.store import Store
from batchmill.producer.watch.many_jobs import EndWatch
from batchmill.producer.watch.wait_limits import CONNECTION_ERRORS, TimeBudget

from .batch_intake import BatchIntake, BatchLine, batch_error, fails_batch
from .job_groups import FULL_PAUSE_S, OnRejected


def create_batch(
    store: Store,
    settings: ProducerSettings,
    lines: Iterable[BatchLine],
    request: BatchRequest,
    on_rejected: OnRejected | None,
) -> BatchStatus:
    """Open a batch, submit its lines as they are read, and seal it."""
    batch = raise_if_error(store.run(batch_calls.create(request, settings)))
    is_resumable = request.idempotency_key is not None
    intake = BatchIntake(batch, settings, on_rejected=on_rejected, is_resumable=is_resumable)
    try:
        _submit(store, intake, lines)
        raise_if_error(store.run(batch_calls.seal(batch.batch_id, intake.num_lines)))
    except CONNECTION_ERRORS:
        raise  # the broker is away, so the batch cannot be failed now
    except Exception as error:
        if fails_batch(intake, error, is_resumable=is_resumable):
            cancel_batch(store, batch.batch_id, batch_error(intake, error))
        raise
    return status_of(store, batch.batch_id)


def _submit(store: Store, intake: BatchIntake, lines: Iterable[BatchLine]) -> None:
    for line in lines:
        intake.add(line)
        if intake.must_be_sent:
            _send(store, intake)
    _send(store, intake)


def _send(store: Store, intake: BatchIntake) -> None:
    while not intake.is_empty and not intake.take(store.run_all(intake.calls())):
        intake.check()
        time.sleep(FULL_PAUSE_S)
    intake.check()


def status_of(store: Store, batch_id: str) -> BatchStatus:
    """Return the status of a batch.

    Raises:
        UnknownBatch: the batch does not exist.
    """
    status = (store.read(batches([batch_id])))[0]
    if status is None:
        raise unknown_batch_error(batch_id)
    return status


def newest_batches(store: Store, limit: int) -> list[BatchStatus]:
    """Return the newest batches, newest first."""
    ids = store.read(newest_batch_ids(limit))
    found = store.read(batches(ids))
    return [batch for batch in found if batch is not None]


def cancel_batch(store: Store, batch_id: str, error: BatchError | None = None) -> BatchStatus:
    """Cancel the jobs of a batch that have not ended, and return its new status.

    If this is interrupted, the workers' sweep continues it.

    Raises:
        UnknownBatch: the batch does not exist.
    """
    store.run(batch_calls.cancel(batch_id, error))
    status = status_of(store, batch_id)
    if status.status is not BatchState.CANCELLING:
        return status
    after = -1
    while page := store.read(batch_page(batch_id, after)):
        store.run_all([job_calls.cancel(job_id) for _, job_id in page])
        after = page[-1][0]
    return status_of(store, batch_id)


def batch_results(
    store: Store, batch_id: str, timeout_s: float | None
) -> Generator[BatchEntry, None, None]:
    """Yield the lines of a batch in the order of the input, waiting for the end of each."""
    budget = TimeBudget(timeout_s)
    after = -1
    while (status_of(store, batch_id)).status is BatchState.VALIDATING:
        time.sleep(min(FULL_PAUSE_S, budget.next_wait_s(0)))
    with contextlib.closing(EndWatch(store)) as watch:
        while page := store.read(batch_page(batch_id, after)):
            watch.add(job_id for _, job_id in page)
            while len(watch):
                watch.next_ended(budget.next_wait_s(len(watch)))
            for start in range(0, len(page), MAX_ENDS_AT_ONCE):
                some = page[start : start + MAX_ENDS_AT_ONCE]
                yield from store.read(batch_entries(some))
            after = page[-1][0]
