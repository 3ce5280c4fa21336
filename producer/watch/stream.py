"""Following one job's output, woken by its channel: for the synchronous and the asyncio client."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator

from redis.asyncio.client import PubSub as AsyncPubSub
from redis.client import PubSub

from batchmill.producer.protocol import keys
from batchmill.producer.store.async_job_store import AsyncJobStore
from batchmill.producer.store.job_store import JobStore
from batchmill.producer.store.read_stream import StreamPiece, StreamPosition, StreamReader

from .one_job import CONNECTION_ERRORS, Patience


def follow(
    store: JobStore, job_id: str, position: StreamPosition | None, timeout_s: float | None
) -> Iterator[StreamPiece]:
    """Yield what is new until the job has ended.

    Raises:
        ResultTimeout: it has not ended after `timeout_s`.
        UnknownJob, OutputRestarted, JobFailed, JobCancelled, JobExpired: as `Client.stream`.
    """
    patience = Patience(job_id, timeout_s)
    reader = StreamReader(job_id, position)
    while reader.ended is None:
        try:
            pubsub: PubSub = store.client.pubsub()
            with contextlib.closing(pubsub):
                pubsub.subscribe(keys.channel(job_id))
                while reader.ended is None:
                    # The first message confirms the subscription: the look after it misses nothing.
                    pubsub.get_message(timeout=patience.next_wait_s())
                    while pubsub.get_message(timeout=0.0):
                        pass
                    piece = reader.take(store.read_stream(job_id, reader.position))
                    if piece is not None:
                        yield piece
        except CONNECTION_ERRORS as error:
            time.sleep(patience.pause_s(error))
    reader.check_end()


async def follow_async(
    store: AsyncJobStore, job_id: str, position: StreamPosition | None, timeout_s: float | None
) -> AsyncIterator[StreamPiece]:
    """As `follow`."""
    patience = Patience(job_id, timeout_s)
    reader = StreamReader(job_id, position)
    while reader.ended is None:
        try:
            pubsub: AsyncPubSub = store.client.pubsub()
            async with contextlib.aclosing(pubsub):
                await pubsub.subscribe(keys.channel(job_id))
                while reader.ended is None:
                    await pubsub.get_message(timeout=patience.next_wait_s())
                    while await pubsub.get_message(timeout=0.0):
                        pass
                    piece = reader.take(await store.read_stream(job_id, reader.position))
                    if piece is not None:
                        yield piece
        except CONNECTION_ERRORS as error:
            await asyncio.sleep(patience.pause_s(error))
    reader.check_end()
