"""A cancelled task ends, even if `asyncio.wait_for` swallows the cancellation.

Before Python 3.12, `asyncio.wait_for` returns the result of its work if the cancellation arrives
when the work is done and the waiter has not run yet. redis-py sends every command through it. These
tests cancel at exactly that moment; from Python 3.12 on they cancel a task that is sending.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from redis.asyncio.connection import AbstractConnection

from batchmill.producer import AsyncClient, BatchRequest, JobFields, ProducerSettings
from batchmill.producer.store import batch_calls
from batchmill.producer.store.batch_calls import OpenBatch

#: A loop that has lost its cancellation never ends; any other ends at once.
LIMIT_S = 5.0

Loop = Callable[[AsyncClient, str], Awaitable[object]]


class CancelWhileSending:
    """Cancels a task at the end of the first send that it waits for after `arm`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._task: asyncio.Task[Any] | None = None
        self._command = b""
        self.has_cancelled = False
        send: Callable[..., Awaitable[None]] = AbstractConnection._send_packed_command

        async def send_and_cancel(connection: AbstractConnection, command: Any) -> None:
            await send(connection, command)
            if self._task is not None and self._command in b"".join(command):
                # The sender waits for this coroutine, which ends before the sender wakes up.
                self._task.cancel()
                self._task = None
                self.has_cancelled = True

        monkeypatch.setattr(AbstractConnection, "_send_packed_command", send_and_cancel)

    def arm(self, task: asyncio.Task[Any], command: bytes) -> None:
        """Cancel the task when it has sent a command that holds these bytes."""
        self._task, self._command = task, command


async def wait_for_result(client: AsyncClient, job_id: str) -> None:
    await client.result(job_id)


async def follow_stream(client: AsyncClient, job_id: str) -> None:
    async for _ in client.stream(job_id):
        pass


async def wait_for_many(client: AsyncClient, job_id: str) -> None:
    async for _ in client.as_completed([job_id]):
        pass


async def list_all(client: AsyncClient, job_id: str) -> None:
    while True:
        await client.list()


async def wait_for_room(client: AsyncClient, job_id: str) -> None:
    await client.submit_many(["hi"], wait_when_full_s=3600)


async def create_batch_that_waits_for_room(client: AsyncClient, job_id: str) -> None:
    await client.create_batch([{"prompt": "hi"}])


async def submit_without_end(client: AsyncClient, job_id: str) -> None:
    async def source() -> AsyncIterator[JobFields]:
        while True:
            yield {"prompt": "x" * (1 << 20)}

    async for _ in client.iter_submit(source(), on_rejected=lambda index, error: None):
        pass


async def wait_for_lines_of_a_batch(client: AsyncClient, job_id: str) -> None:
    opened = await client._shards.first.run(batch_calls.create(BatchRequest(), client.settings))
    assert isinstance(opened, OpenBatch)
    async for _ in client.batch_results(opened.batch_id):
        pass


@pytest.mark.parametrize(
    ("loop", "command"),
    [
        (wait_for_result, b"HGET"),
        (wait_for_result, b"SUBSCRIBE"),
        (follow_stream, b"SUBSCRIBE"),
        (follow_stream, b"HMGET"),
        (wait_for_many, b"SUBSCRIBE"),
        (wait_for_many, b"HGET"),
        (list_all, b"EVALSHA"),
        (wait_for_room, b"EVALSHA"),
        (create_batch_that_waits_for_room, b"EVALSHA"),
        (submit_without_end, b"EVALSHA"),
        (wait_for_lines_of_a_batch, b"HGETALL"),
    ],
)
def test_a_cancellation_that_is_swallowed_while_sending_ends_the_loop(
    loop: Loop, command: bytes, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancel_while_sending = CancelWhileSending(monkeypatch)

    async def test() -> None:
        settings = ProducerSettings(max_queue_depth=1)
        async with AsyncClient(redis_url, settings=settings) as client:
            job = await client.submit(prompt="fills the queue")
            task = asyncio.ensure_future(loop(client, job.id))
            cancel_while_sending.arm(task, command)
            done, _ = await asyncio.wait([task], timeout=LIMIT_S)
            assert cancel_while_sending.has_cancelled
            if not done:
                while not task.done():
                    task.cancel()
                    await asyncio.sleep(0.01)
                pytest.fail("the task went on after it had been cancelled")
            assert task.cancelled()
            # No connection holds an unread reply.
            assert (await client.status(job.id)).id == job.id

    asyncio.run(test())
