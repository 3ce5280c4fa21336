# Generated from async_one_job.py by tests/structure/generate_sync.py: change that file.
"""Waiting for the end of one job, over a subscription of its own."""

from __future__ import annotations

import contextlib
import time
from typing import Any

from batchmill.producer.errors import ResultTimeout
from batchmill.producer.protocol import keys, reads
from batchmill.producer.store.call_limits import time_limit
from batchmill.producer.store.reply_errors import unknown_job_error
from batchmill.producer.store.store import Store

from .channel_messages import is_progress
from .explanation import explain_wait, explained
from .wait_limits import CONNECTION_ERRORS, OnWait, WaitLimit


def wait_until_ended(
    store: Store, job_id: str, timeout_s: float | None, on_wait: OnWait | None = None
) -> None:
    """Return when the job has ended.

    Raises:
        ResultTimeout: it has not, after `timeout_s` seconds.
        UnknownJob: the job does not exist.
        redis.exceptions.ConnectionError: the broker has been away for `OUTAGE_LIMIT_S`, or was
            away when the caller's time was over.
    """
    limit = WaitLimit(job_id, timeout_s, on_wait)
    try:
        _wait(store, limit)
    except ResultTimeout as error:
        raise explained(store, error, [job_id]) from None


def _wait(store: Store, limit: WaitLimit) -> None:
    while True:
        try:
            if _has_ended(store, limit):
                return
            limit.next_wait_s()
            _listen_until_ended(store, limit)
            return
        except CONNECTION_ERRORS as error:
            time.sleep(limit.pause_s(error))


def _has_ended(store: Store, limit: WaitLimit) -> bool:
    # A limit of its own: with what is left of one limit for all calls, the last read before the
    # end of the wait would have no time for a reply, and a slow broker would look like a lost one.
    with time_limit(limit.call_limit_s()):
        state = (store.read(reads.job_states([limit.job_id])))[0]
    if state is None:
        raise unknown_job_error(limit.job_id)
    return state.is_terminal


def _listen_until_ended(store: Store, limit: WaitLimit) -> None:
    with contextlib.closing(store.pubsub()) as channel:
        with time_limit(limit.call_limit_s()):
            channel.subscribe(keys.channel(limit.job_id))
            # The first message confirms the subscription. Only a read after it cannot miss the end.
            channel.get_message(timeout=limit.next_wait_s())
        while not _has_ended(store, limit):
            _next_state_message(channel, limit)
            explain_wait(store, limit)


def _next_state_message(channel: Any, limit: WaitLimit) -> None:
    """Return when there is a reason to read the record, or when a poll or a report is due."""
    while True:
        with time_limit(limit.call_limit_s()):
            message = channel.get_message(timeout=limit.next_wait_s())
        if not is_progress(message) or limit.is_report_due():
            return
