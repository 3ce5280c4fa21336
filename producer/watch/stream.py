# Generated from async_stream.py by tests/structure/generate_sync.py: change that file.
"""Following the output of one job while it grows, woken by its channel."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator

from batchmill.producer.errors import ResultTimeout
from batchmill.producer.protocol import keys
from batchmill.producer.store.call_limits import time_limit
from batchmill.producer.store.job_output import (
    StreamPiece,
    StreamPosition,
    StreamReader,
)
from batchmill.producer.store.store import Store

from .explanation import explain_wait, explained
from .wait_limits import CONNECTION_ERRORS, OnWait, WaitLimit


def follow_output(
    store: Store,
    job_id: str,
    position: StreamPosition | None,
    timeout_s: float | None,
    on_wait: OnWait | None = None,
) -> Generator[StreamPiece, None, None]:
    """Yield new pieces of the output until the job has ended.

    Raises:
        ResultTimeout: it has not ended after `timeout_s`.
        UnknownJob, OutputRestarted, JobFailed, JobCancelled, JobExpired: as `Client.stream`.
    """
    limit = WaitLimit(job_id, timeout_s, on_wait)
    reader = StreamReader(job_id, position)
    while reader.ended is None:
        try:
            with contextlib.closing(store.pubsub()) as channel:
                with time_limit(limit.call_limit_s()):
                    channel.subscribe(keys.channel(job_id))
                while reader.ended is None:
                    # The first message confirms the subscription: the read after it misses nothing.
                    channel.get_message(timeout=limit.next_wait_s())
                    while channel.get_message(timeout=0.0):
                        pass
                    with time_limit(limit.call_limit_s()):
                        piece = reader.take(store.read(reader.next_read()))
                    if reader.must_read_again:
                        piece = reader.take(store.read(reader.next_read()))
                    if piece is not None:
                        yield piece
                        limit.put_off_report()
                    explain_wait(store, limit)
        except CONNECTION_ERRORS as error:
            time.sleep(limit.pause_s(error))
        except ResultTimeout as error:
            raise explained(store, error, [job_id]) from None
    reader.check_end()
