"""The asyncio twin of `batch_client`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable

from batchmill.producer.job.batch import BatchError, BatchRequest, BatchState, BatchStatus
from batchmill.producer.protocol import calls
from batchmill.producer.settings import ProducerSettings
from batchmill.producer.store import batch_calls
from batchmill.producer.store.async_job_store import AsyncJobStore
from batchmill.producer.store.batch_calls import raised
from batchmill.producer.store.batch_store import AsyncBatchStore, BatchEntry
from batchmill.producer.store.outcomes import unknown_batch
from batchmill.producer.store.read_ends import MAX_READ_AT_ONCE
from batchmill.producer.watch.async_many_jobs import AsyncEndWatch
from batchmill.producer.watch.many_jobs import TimeBudget
from batchmill.producer.watch.one_job import CONNECTION_ERRORS

from .batch_intake import FULL_PAUSE_S, BatchIntake, BatchLine, error_of, fails_batch
from .batching import OnRejected


async def create_batch(
    store: AsyncJobStore,
    settings: ProducerSettings,
    lines: AsyncIterable[BatchLine],
    request: BatchRequest,
    on_rejected: OnRejected | None,
) -> BatchStatus:
    """As `batch_client.create_batch`."""
    batch = raised(await store.run(batch_calls.create(request, settings)))
    is_resumable = request.idempotency_key is not None
    intake = BatchIntake(batch, settings, on_rejected=on_rejected, is_resumable=is_resumable)
    try:
        await _submit(store, intake, lines)
        raised(await store.run(batch_calls.seal(batch.batch_id, intake.num_lines)))
    except CONNECTION_ERRORS:
        raise
    except Exception as error:
        if fails_batch(intake, error, is_resumable=is_resumable):
            await cancel_batch(store, batch.batch_id, error_of(intake, error))
        raise
    return await status_of(store, batch.batch_id)


async def _submit(
    store: AsyncJobStore, intake: BatchIntake, lines: AsyncIterable[BatchLine]
) -> None:
    async for line in lines:
        intake.add(line)
        if intake.must_be_sent:
            await _send(store, intake)
    await _send(store, intake)


async def _send(store: AsyncJobStore, intake: BatchIntake) -> None:
    while not intake.is_empty and not intake.take(await store.run_all(intake.calls())):
        intake.check()
        await asyncio.sleep(FULL_PAUSE_S)
    intake.check()


async def status_of(store: AsyncJobStore, batch_id: str) -> BatchStatus:
    """As `batch_client.status_of`."""
    status = await AsyncBatchStore(store).load(batch_id)
    if status is None:
        raise unknown_batch(batch_id)
    return status


async def cancel_batch(
    store: AsyncJobStore, batch_id: str, error: BatchError | None = None
) -> BatchStatus:
    """As `batch_client.cancel_batch`."""
    await store.run(batch_calls.cancel(batch_id, error))
    status = await status_of(store, batch_id)
    if status.status is not BatchState.CANCELLING:
        return status
    after = -1
    batches = AsyncBatchStore(store)
    while page := await batches.page(batch_id, after):
        await store.run_all([calls.cancel(job_id) for _, job_id in page])
        after = page[-1][0]
    return await status_of(store, batch_id)


async def batch_results(
    store: AsyncJobStore, batch_id: str, timeout_s: float | None
) -> AsyncGenerator[BatchEntry, None]:
    """As `batch_client.batch_results`."""
    batches = AsyncBatchStore(store)
    budget = TimeBudget(timeout_s)
    after = -1
    while (await status_of(store, batch_id)).status is BatchState.VALIDATING:
        await asyncio.sleep(min(FULL_PAUSE_S, budget.next_wait_s(0)))
    watch = AsyncEndWatch(store)
    try:
        while page := await batches.page(batch_id, after):
            watch.add(job_id for _, job_id in page)
            while len(watch):
                await watch.next_ended(budget.next_wait_s(len(watch)))
            for start in range(0, len(page), MAX_READ_AT_ONCE):
                for entry in await batches.entries(page[start : start + MAX_READ_AT_ONCE]):
                    yield entry
            after = page[-1][0]
    finally:
        await watch.close()
