"""Following the output of one job while it grows, woken by its channel."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator

from batchmill.producer.errors import ResultTimeout
from batchmill.producer.protocol import keys
from batchmill.producer.store.async_store import AsyncStore
from batchmill.producer.store.call_limits import time_limit
from batchmill.producer.store.job_output import (
    StreamPiece,
    StreamPosition,
    StreamReader,
)

from .async_explanation import explain_wait, explained
from .wait_limits import CONNECTION_ERRORS, OnWait, WaitLimit


async def follow_output(
    store: AsyncStore,
    job_id: str,
    position: StreamPosition | None,
    timeout_s: float | None,
    on_wait: OnWait | None = None,
) -> AsyncGenerator[StreamPiece, None]:
    """Yield new pieces of the output until the job has ended.

    Raises:
        ResultTimeout: it has not ended after `timeout_s`.
        UnknownJob, OutputRestarted, JobFailed, JobCancelled, JobExpired: as `AsyncClient.stream`.
    """
    limit = WaitLimit(job_id, timeout_s, on_wait)
    reader = StreamReader(job_id, position)
    while reader.ended is None:
        try:
            async with contextlib.aclosing(store.pubsub()) as channel:
                with time_limit(limit.call_limit_s()):
                    await channel.subscribe(keys.channel(job_id))
                while reader.ended is None:
                    # The first message confirms the subscription: the read after it misses nothing.
                    await channel.get_message(timeout=limit.next_wait_s())
                    while await channel.get_message(timeout=0.0):
                        pass
                    with time_limit(limit.call_limit_s()):
                        piece = reader.take(await store.read(reader.next_read()))
                    if reader.must_read_again:
                        piece = reader.take(await store.read(reader.next_read()))
                    if piece is not None:
                        yield piece
                        limit.put_off_report()
                    await explain_wait(store, limit)
        except CONNECTION_ERRORS as error:
            await asyncio.sleep(limit.pause_s(error))
        except ResultTimeout as error:
            raise await explained(store, error, [job_id]) from None
    reader.check_end()
