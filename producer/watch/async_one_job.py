"""Waiting for the end of one job, over a subscription of its own."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from batchmill.producer.errors import ResultTimeout
from batchmill.producer.protocol import keys, reads
from batchmill.producer.store.async_store import AsyncStore
from batchmill.producer.store.call_limits import time_limit
from batchmill.producer.store.reply_errors import unknown_job_error

from .async_explanation import explain_wait, explained
from .channel_messages import is_progress
from .wait_limits import CONNECTION_ERRORS, OnWait, WaitLimit


async def wait_until_ended(
    store: AsyncStore, job_id: str, timeout_s: float | None, on_wait: OnWait | None = None
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
        await _wait(store, limit)
    except ResultTimeout as error:
        raise await explained(store, error, [job_id]) from None


async def _wait(store: AsyncStore, limit: WaitLimit) -> None:
    while True:
        try:
            if await _has_ended(store, limit):
                return
            limit.next_wait_s()
            await _listen_until_ended(store, limit)
            return
        except CONNECTION_ERRORS as error:
            await asyncio.sleep(limit.pause_s(error))


async def _has_ended(store: AsyncStore, limit: WaitLimit) -> bool:
    # A limit of its own: with what is left of one limit for all calls, the last read before the
    # end of the wait would have no time for a reply, and a slow broker would look like a lost one.
    with time_limit(limit.call_limit_s()):
        state = (await store.read(reads.job_states([limit.job_id])))[0]
    if state is None:
        raise unknown_job_error(limit.job_id)
    return state.is_terminal


async def _listen_until_ended(store: AsyncStore, limit: WaitLimit) -> None:
    async with contextlib.aclosing(store.pubsub()) as channel:
        with time_limit(limit.call_limit_s()):
            await channel.subscribe(keys.channel(limit.job_id))
            # The first message confirms the subscription. Only a read after it cannot miss the end.
            await channel.get_message(timeout=limit.next_wait_s())
        while not await _has_ended(store, limit):
            await _next_state_message(channel, limit)
            await explain_wait(store, limit)


async def _next_state_message(channel: Any, limit: WaitLimit) -> None:
    """Return when there is a reason to read the record, or when a poll or a report is due."""
    while True:
        with time_limit(limit.call_limit_s()):
            message = await channel.get_message(timeout=limit.next_wait_s())
        if not is_progress(message) or limit.is_report_due():
            return
