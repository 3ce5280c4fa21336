# Generated from async_batch_verbs.py by tests/structure/generate_sync.py: change that file.
"""The client's verbs on batches: create, status, newest, cancel, results."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator, Iterable, Sequence

from batchmill.producer.errors import ResultTimeout
from batchmill.producer.job.batch import BatchError, BatchRequest, BatchState, BatchStatus
from batchmill.producer.plural import pluralize
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls import jobs as job_calls
from batchmill.producer.settings import ProducerSettings
from batchmill.producer.store import batch_calls
from batchmill.producer.store.batch_calls import OpenBatch, raise_if_error
from batchmill.producer.store.batches import (
    BatchEntry,
    batch_entries,
    batch_page,
    batches,
    newest_batch_ids,
)
from batchmill.producer.store.call_limits import time_limit
from batchmill.producer.store.ended_jobs import MAX_ENDS_AT_ONCE
from batchmill.producer.store.reply_errors import unknown_batch_error
from batchmill.producer.store.shards import Shards
from batchmill.producer.store.store import Store
from batchmill.producer.watch.explanation import explained
from batchmill.producer.watch.many_jobs import EndWatch
from batchmill.producer.watch.wait_limits import CONNECTION_ERRORS, TimeBudget

from .batch_intake import BatchIntake, BatchLine, batch_error, fails_batch, tenant_of
from .first_item import with_first
from .job_groups import FULL_PAUSE_S, OnRejected


def create_batch(
    shards: Shards,
    settings: ProducerSettings,
    lines: Iterable[BatchLine],
    request: BatchRequest,
    on_rejected: OnRejected | None,
) -> BatchStatus:
    """Open a batch, submit its lines as they are read, and seal it."""
    default_tenant, is_resumable = request.tenant, request.idempotency_key is not None
    if is_resumable and default_tenant is None:
        # The key is one of the tenant's keys, so the tenant must be known before the batch.
        first, lines = with_first(lines)
        request = request.model_copy(update={"tenant": tenant_of(first)})
    batch_id = shards.new_batch_id(
        keys.new_batch_id(request.idempotency_key, request.tenant),
        settings.served_name,
        request.tenant or keys.DEFAULT_TENANT,
        is_keyed=is_resumable,
    )
    store = shards.of_batch(batch_id)
    call = batch_calls.create(request, settings, batch_id)
    batch = raise_if_error(store.run_confirmed(call))
    return fill_batch(
        store,
        settings,
        batch,
        lines,
        on_rejected=on_rejected,
        is_resumable=is_resumable,
        default_tenant=default_tenant,
    )


def fill_batch(
    store: Store,
    settings: ProducerSettings,
    batch: OpenBatch,
    lines: Iterable[BatchLine],
    *,
    on_rejected: OnRejected | None,
    is_resumable: bool,
    default_tenant: str | None = None,
) -> BatchStatus:
    """Submit the lines of an open batch as they are read, and seal it.

    Args:
        store: the job store.
        settings: for defaults and limits of the jobs.
        batch: a batch that still takes lines.
        lines: all of its lines, from the first on; those that it has are not submitted again.
        on_rejected: called for each rejected line; None fails the batch at the first.
        is_resumable: the same call may be repeated, so that an interruption does not fail it.
        default_tenant: of lines that name none.
    """
    intake = BatchIntake(
        batch,
        settings,
        on_rejected=on_rejected,
        is_resumable=is_resumable,
        default_tenant=default_tenant,
    )
    try:
        _submit(store, intake, lines)
        raise_if_error(store.run_confirmed(batch_calls.seal(batch.batch_id, intake.num_lines)))
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
    while not intake.is_empty and not intake.take(store.run_all_confirmed(intake.calls())):
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


def cancel_batch(store: Store, batch_id: str, *errors: BatchError) -> BatchStatus:
    """Cancel the jobs of a batch that have not ended, and return its new status.

    If this is interrupted, the workers' sweep continues it.

    Raises:
        UnknownBatch: the batch does not exist.
    """
    store.run(batch_calls.cancel(batch_id, *errors))
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
        try:
            pause_s = budget.next_wait_s(0)
        except ResultTimeout:
            raise ResultTimeout(
                f"the lines of batch {batch_id} are still being submitted after {timeout_s} s; it "
                "continues: wait again, or cancel it"
            ) from None
        time.sleep(min(FULL_PAUSE_S, pause_s))
    with contextlib.closing(EndWatch(store)) as watch:
        while page := store.read(batch_page(batch_id, after)):
            watch.add(job_id for _, job_id in page)
            while len(watch):
                try:
                    wait_s = budget.next_wait_s(len(watch), watch.connection_error)
                except ResultTimeout:
                    raise _late(store, batch_id, timeout_s, watch.pending_ids) from None
                with time_limit(budget.call_limit_s()):
                    watch.next_ended(wait_s)
            for start in range(0, len(page), MAX_ENDS_AT_ONCE):
                some = page[start : start + MAX_ENDS_AT_ONCE]
                yield from store.read(batch_entries(some))
            after = page[-1][0]


def _late(
    store: Store, batch_id: str, timeout_s: float | None, pending_ids: Sequence[str]
) -> ResultTimeout:
    """Return the error of a caller whose time is over, with the counts of the whole batch."""
    counts = (status_of(store, batch_id)).request_counts
    ended = counts.completed + counts.failed
    error = ResultTimeout(
        f"{ended} of the {pluralize(counts.total, 'line')} of batch {batch_id} have ended after "
        f"{timeout_s} s; it continues: wait again, or cancel it"
    )
    return explained(store, error, pending_ids)
