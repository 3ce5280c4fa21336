"""The client's verbs on batches: create, status, newest, cancel, results."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterable, Sequence

from batchmill.producer.errors import ResultTimeout
from batchmill.producer.job.batch import BatchError, BatchRequest, BatchState, BatchStatus
from batchmill.producer.plural import pluralize
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls import jobs as job_calls
from batchmill.producer.settings import ProducerSettings
from batchmill.producer.store import batch_calls
from batchmill.producer.store.async_shards import AsyncShards
from batchmill.producer.store.async_store import AsyncStore
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
from batchmill.producer.watch.async_explanation import explained
from batchmill.producer.watch.async_many_jobs import AsyncEndWatch
from batchmill.producer.watch.wait_limits import CONNECTION_ERRORS, TimeBudget

from .async_checks import off_loop
from .async_first_item import with_first
from .batch_intake import BatchIntake, BatchLine, batch_error, fails_batch, tenant_of
from .job_groups import FULL_PAUSE_S, OnRejected


async def create_batch(
    shards: AsyncShards,
    settings: ProducerSettings,
    lines: AsyncIterable[BatchLine],
    request: BatchRequest,
    on_rejected: OnRejected | None,
) -> BatchStatus:
    """Open a batch, submit its lines as they are read, and seal it."""
    default_tenant, is_resumable = request.tenant, request.idempotency_key is not None
    if is_resumable and default_tenant is None:
        # The key is one of the tenant's keys, so the tenant must be known before the batch.
        first, lines = await with_first(lines)
        request = request.model_copy(update={"tenant": tenant_of(first)})
    batch_id = await shards.new_batch_id(
        keys.new_batch_id(request.idempotency_key, request.tenant),
        settings.served_name,
        request.tenant or keys.DEFAULT_TENANT,
        is_keyed=is_resumable,
    )
    store = await shards.of_batch(batch_id)
    call = batch_calls.create(request, settings, batch_id)
    batch = raise_if_error(await store.run_confirmed(call))
    return await fill_batch(
        store,
        settings,
        batch,
        lines,
        on_rejected=on_rejected,
        is_resumable=is_resumable,
        default_tenant=default_tenant,
    )


async def fill_batch(
    store: AsyncStore,
    settings: ProducerSettings,
    batch: OpenBatch,
    lines: AsyncIterable[BatchLine],
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
        await _submit(store, intake, lines)
        raise_if_error(
            await store.run_confirmed(batch_calls.seal(batch.batch_id, intake.num_lines))
        )
    except CONNECTION_ERRORS:
        raise  # the broker is away, so the batch cannot be failed now
    except Exception as error:
        if fails_batch(intake, error, is_resumable=is_resumable):
            await cancel_batch(store, batch.batch_id, batch_error(intake, error))
        raise
    return await status_of(store, batch.batch_id)


async def _submit(store: AsyncStore, intake: BatchIntake, lines: AsyncIterable[BatchLine]) -> None:
    async for line in lines:
        await off_loop(intake.add, line)
        if intake.must_be_sent:
            await _send(store, intake)
    await _send(store, intake)


async def _send(store: AsyncStore, intake: BatchIntake) -> None:
    while not intake.is_empty and not intake.take(await store.run_all_confirmed(intake.calls())):
        intake.check()
        await asyncio.sleep(FULL_PAUSE_S)
    intake.check()


async def status_of(store: AsyncStore, batch_id: str) -> BatchStatus:
    """Return the status of a batch.

    Raises:
        UnknownBatch: the batch does not exist.
    """
    status = (await store.read(batches([batch_id])))[0]
    if status is None:
        raise unknown_batch_error(batch_id)
    return status


async def newest_batches(store: AsyncStore, limit: int) -> list[BatchStatus]:
    """Return the newest batches, newest first."""
    ids = await store.read(newest_batch_ids(limit))
    found = await store.read(batches(ids))
    return [batch for batch in found if batch is not None]


async def cancel_batch(store: AsyncStore, batch_id: str, *errors: BatchError) -> BatchStatus:
    """Cancel the jobs of a batch that have not ended, and return its new status.

    If this is interrupted, the workers' sweep continues it.

    Raises:
        UnknownBatch: the batch does not exist.
    """
    await store.run(batch_calls.cancel(batch_id, *errors))
    status = await status_of(store, batch_id)
    if status.status is not BatchState.CANCELLING:
        return status
    after = -1
    while page := await store.read(batch_page(batch_id, after)):
        await store.run_all([job_calls.cancel(job_id) for _, job_id in page])
        after = page[-1][0]
    return await status_of(store, batch_id)


async def batch_results(
    store: AsyncStore, batch_id: str, timeout_s: float | None
) -> AsyncGenerator[BatchEntry, None]:
    """Yield the lines of a batch in the order of the input, waiting for the end of each."""
    budget = TimeBudget(timeout_s)
    after = -1
    while (await status_of(store, batch_id)).status is BatchState.VALIDATING:
        try:
            pause_s = budget.next_wait_s(0)
        except ResultTimeout:
            raise ResultTimeout(
                f"the lines of batch {batch_id} are still being submitted after {timeout_s} s; it "
                "continues: wait again, or cancel it"
            ) from None
        await asyncio.sleep(min(FULL_PAUSE_S, pause_s))
    async with contextlib.aclosing(AsyncEndWatch(store)) as watch:
        while page := await store.read(batch_page(batch_id, after)):
            watch.add(job_id for _, job_id in page)
            while len(watch):
                try:
                    wait_s = budget.next_wait_s(len(watch), watch.connection_error)
                except ResultTimeout:
                    raise await _late(store, batch_id, timeout_s, watch.pending_ids) from None
                with time_limit(budget.call_limit_s()):
                    await watch.next_ended(wait_s)
            for start in range(0, len(page), MAX_ENDS_AT_ONCE):
                some = page[start : start + MAX_ENDS_AT_ONCE]
                for entry in await store.read(batch_entries(some)):
                    yield entry
            after = page[-1][0]


async def _late(
    store: AsyncStore, batch_id: str, timeout_s: float | None, pending_ids: Sequence[str]
) -> ResultTimeout:
    """Return the error of a caller whose time is over, with the counts of the whole batch."""
    counts = (await status_of(store, batch_id)).request_counts
    ended = counts.completed + counts.failed
    error = ResultTimeout(
        f"{ended} of the {pluralize(counts.total, 'line')} of batch {batch_id} have ended after "
        f"{timeout_s} s; it continues: wait again, or cancel it"
    )
    return await explained(store, error, pending_ids)
