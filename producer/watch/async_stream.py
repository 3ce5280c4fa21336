"""Following the output of one job while it grows, woken by its channel."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator

from batchmill.producer.protocol import keys
from batchmill.producer.store.async_store import AsyncStore
from batchmill.producer.store.job_output import (
    StreamPiece,
    StreamPosition,
    StreamReader,
    new_output,
)

from .wait_limits import CONNECTION_ERRORS, WaitLimit


async def follow_output(
    store: AsyncStore, job_id: str, position: StreamPosition | None, timeout_s: float | None
) -> AsyncGenerator[StreamPiece, None]:
    """Yield new pieces of the output until the job has ended.

    Raises:
        ResultTimeout: it has not ended after `timeout_s`.
        UnknownJob, OutputRestarted, JobFailed, JobCancelled, JobExpired: as `AsyncClient.stream`.
    """
    limit = WaitLimit(job_id, timeout_s)
    reader = StreamReader(job_id, position)
    while reader.ended is None:
        try:
            async with contextlib.aclosing(store.pubsub()) as channel:
                await channel.subscribe(keys.channel(job_id))
                while reader.ended is None:
                    # The first message confirms the subscription: the read after it misses nothing.
                    await channel.get_message(timeout=limit.next_wait_s())
                    while await channel.get_message(timeout=0.0):
                        pass
                    replies = await store.read(new_output(job_id, reader.position))
                    piece = reader.take(replies)
                    if piece is not None:
                        yield piece
        except CONNECTION_ERRORS as error:
            await asyncio.sleep(limit.pause_s(error))
    reader.check_end()
