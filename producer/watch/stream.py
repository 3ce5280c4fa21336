# Generated from async_stream.py by tests/structure/generate_sync.py: change that file.
"""Following the output of one job while it grows, woken by its channel."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator

from batchmill.producer.protocol import keys
from batchmill.producer.store.job_output import (
    StreamPiece,
    StreamPosition,
    StreamReader,
    new_output,
)
from batchmill.producer.store.store import Store

from .wait_limits import CONNECTION_ERRORS, WaitLimit


def follow_output(
    store: Store, job_id: str, position: StreamPosition | None, timeout_s: float | None
) -> Generator[StreamPiece, None, None]:
    """Yield new pieces of the output until the job has ended.

    Raises:
        ResultTimeout: it has not ended after `timeout_s`.
        UnknownJob, OutputRestarted, JobFailed, JobCancelled, JobExpired: as `Client.stream`.
    """
    limit = WaitLimit(job_id, timeout_s)
    reader = StreamReader(job_id, position)
    while reader.ended is None:
        try:
            with contextlib.closing(store.pubsub()) as channel:
                channel.subscribe(keys.channel(job_id))
                while reader.ended is None:
                    # The first message confirms the subscription: the read after it misses nothing.
                    channel.get_message(timeout=limit.next_wait_s())
                    while channel.get_message(timeout=0.0):
                        pass
                    replies = store.read(new_output(job_id, reader.position))
                    piece = reader.take(replies)
                    if piece is not None:
                        yield piece
        except CONNECTION_ERRORS as error:
            time.sleep(limit.pause_s(error))
    reader.check_end()
