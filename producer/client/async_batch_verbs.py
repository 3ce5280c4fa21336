"""The client's verbs on batches: create, status, newest, cancel, results."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterable

from batchmill.producer.job.batch import BatchError, BatchRequest, BatchState, BatchStatus
from batchmill.producer.protocol.calls import jobs as job_calls
from batchmill.producer.settings import ProducerSettings
from batchmill.producer.store import batch_calls
from batchmill.producer.store.async_store import AsyncStore
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
from batchmill.producer.watch.async_many_jobs import AsyncEndWatch
from batchmill.producer.watch.wait_limits import CONNECTION_ERRORS, TimeBudget

from .async_checks import check_structures
from .batch_intake import BatchIntake, BatchLine, batch_error, fails_batch
from .job_groups import FULL_PAUSE_S, OnRejected


async def create_batch(
    store: AsyncStore,
    settings: ProducerSettings,
    lines: AsyncIterable[BatchLine],
    request: BatchRequest,
    on_rejected: OnRejected | None,
) -> BatchStatus:
    """Open a batch, submit its lines as they are read, and seal it."""
    batch = raise_if_error(await store.run(batch_calls.create(request, settings)))
    is_resumable = request.idempotency_key is not None
    intake = BatchIntake(batch, settings, on_rejected=on_rejected, is_resumable=is_resumable)
    try:
        await _submit(store, intake, lines)
        raise_if_error(await store.run(batch_calls.seal(batch.batch_id, intake.num_lines)))
    except CONNECTION_ERRORS:
        raise  # the broker is away, so the batch cannot be failed now
    except Exception as error:
        if fails_batch(intake, error, is_resumable=is_resumable):
            await cancel_batch(store, batch.batch_id, batch_error(intake, error))
        raise
    return await status_of(store, batch.batch_id)


async def _submit(store: AsyncStore, intake: BatchIntake, lines: AsyncIterable[BatchLine]) -> None:
    async for line in lines:
        await check_structures(line, {})
        intake.add(line)
        if intake.must_be_sent:
            await _send(store, intake)
    await _send(store, intake)


async def _send(store: AsyncStore, intake: BatchIntake) -> None:
    while not intake.is_empty and not intake.take(await store.run_all(intake.calls())):
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


async def cancel_batch(
    store: AsyncStore, batch_id: str, error: BatchError | None = None
) -> BatchStatus:
    """Cancel the jobs of a batch that have not ended, and return its new status.

    If this is interrupted, the workers' sweep continues it.

    Raises:
        UnknownBatch: the batch does not exist.
    """
    await store.run(batch_calls.cancel(batch_id, error))
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
        await asyncio.sleep(min(FULL_PAUSE_S, budget.next_wait_s(0)))
    async with contextlib.aclosing(AsyncEndWatch(store)) as watch:
        while page := await store.read(batch_page(batch_id, after)):
            watch.add(job_id for _, job_id in page)
            while len(watch):
                await watch.next_ended(budget.next_wait_s(len(watch)))
            for start in range(0, len(page), MAX_ENDS_AT_ONCE):
                some = page[start : start + MAX_ENDS_AT_ONCE]
                for entry in await store.read(batch_entries(some)):
                    yield entry
            after = page[-1][0]
