# Generated from async_one_job.py by tests/structure/generate_sync.py: change that file.
"""Waiting for the end of one job, over a subscription of its own."""

from __future__ import annotations

import contextlib
import time
from typing import Any

from batchmill.producer.protocol import keys, reads
from batchmill.producer.store.reply_errors import unknown_job_error
from batchmill.producer.store.store import Store

from .channel_messages import is_progress
from .wait_limits import CONNECTION_ERRORS, WaitLimit


def wait_until_ended(store: Store, job_id: str, timeout_s: float | None) -> None:
    """Return when the job has ended.

    Raises:
        ResultTimeout: it has not, after `timeout_s` seconds.
        UnknownJob: the job does not exist.
        redis.exceptions.ConnectionError: the broker has been away for `OUTAGE_LIMIT_S`.
    """
    limit = WaitLimit(job_id, timeout_s)
    while True:
        try:
            if _has_ended(store, job_id):
                return
            limit.next_wait_s()
            _listen_until_ended(store, job_id, limit)
            return
        except CONNECTION_ERRORS as error:
            time.sleep(limit.pause_s(error))


def _has_ended(store: Store, job_id: str) -> bool:
    state = (store.read(reads.job_states([job_id])))[0]
    if state is None:
        raise unknown_job_error(job_id)
    return state.is_terminal


def _listen_until_ended(store: Store, job_id: str, limit: WaitLimit) -> None:
    with contextlib.closing(store.pubsub()) as channel:
        channel.subscribe(keys.channel(job_id))
        # The first message confirms the subscription. Only a read after it cannot miss the end.
        channel.get_message(timeout=limit.next_wait_s())
        while not _has_ended(store, job_id):
            _next_state_message(channel, limit)


def _next_state_message(channel: Any, limit: WaitLimit) -> None:
    """Return when there is a reason to read the record, or when the next poll is due."""
    while is_progress(channel.get_message(timeout=limit.next_wait_s())):
        pass
