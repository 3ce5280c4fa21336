"""The asyncio twin of `waiting`."""

from __future__ import annotations

import asyncio
import contextlib

from redis.asyncio.client import PubSub

from batchmill.producer.protocol import keys
from batchmill.producer.store.async_job_store import AsyncJobStore
from batchmill.producer.store.outcomes import unknown

from .one_job import CONNECTION_ERRORS, Patience, is_progress


async def wait_until_ended(store: AsyncJobStore, job_id: str, timeout_s: float | None) -> None:
    """Return when the job has ended.

    Raises:
        ResultTimeout: it has not, after `timeout_s` seconds.
        UnknownJob: there is no such job.
        redis.exceptions.ConnectionError: the broker has been away for too long.
    """
    patience = Patience(job_id, timeout_s)
    while True:
        try:
            if await _has_ended(store, job_id):
                return
            patience.next_wait_s()
            await _watch(store, job_id, patience)
            return
        except CONNECTION_ERRORS as error:
            await asyncio.sleep(patience.pause_s(error))


async def _has_ended(store: AsyncJobStore, job_id: str) -> bool:
    state = await store.state(job_id)
    if state is None:
        raise unknown(job_id)
    return state.is_terminal


async def _watch(store: AsyncJobStore, job_id: str, patience: Patience) -> None:
    """Listen to the job's channel until it has ended."""
    async with contextlib.aclosing(store.client.pubsub()) as channel:
        await channel.subscribe(keys.channel(job_id))
        # The first message confirms the subscription. Only a look after it cannot miss the end.
        await channel.get_message(timeout=patience.next_wait_s())
        while not await _has_ended(store, job_id):
            await _next_state_message(channel, patience)


async def _next_state_message(channel: PubSub, patience: Patience) -> None:
    while is_progress(await channel.get_message(timeout=patience.next_wait_s())):
        pass
