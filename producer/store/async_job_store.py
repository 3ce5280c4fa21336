"""The store as asyncio clients need it: submit, watch and cancel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar, cast

from redis.asyncio import Redis
from redis.exceptions import OutOfMemoryError

from batchmill.producer.protocol import calls, keys
from batchmill.producer.protocol.calls import Call
from batchmill.producer.protocol.records import (
    JobRecord,
    WorkerInfo,
    read_job,
    read_state,
    read_worker,
)
from batchmill.producer.protocol.replies import JobState
from batchmill.producer.protocol.scripts import SCRIPT_NAMES, script_source

from .connection import connect_async
from .read_ends import MAX_READ_AT_ONCE, EndedJob, chunks, queue_end_reads, read_ends
from .read_stream import StreamPosition, queue_stream_read

Answer = TypeVar("Answer")


class AsyncJobStore:
    """The asyncio twin of `JobStore`, without the sides of the worker and the deliverer."""

    def __init__(self, client: Redis) -> None:
        """Bind to a client that returns bytes (`decode_responses=False`)."""
        self.client = client
        self._scripts = {name: client.register_script(script_source(name)) for name in SCRIPT_NAMES}

    @classmethod
    def from_url(cls, url: str) -> AsyncJobStore:
        """Connect to `redis://`, `rediss://`, `unix://` or `redis+socket://`."""
        return cls(connect_async(url))

    async def close(self) -> None:
        """Close the client's connections."""
        await self.client.aclose()

    async def run(self, call: Call[Answer]) -> Answer:
        """Run one script call and read its answer."""
        try:
            reply = await self._scripts[call.script](args=call.args)
        except OutOfMemoryError as error:
            reply = error
        return calls.read_reply(call, reply)

    async def run_all(self, batch: Sequence[Call[Answer]]) -> list[Answer]:
        """Run script calls in one round trip (each atomic, the pipeline as a whole not)."""
        async with self.client.pipeline(transaction=False) as pipeline:
            for call in batch:
                await self._scripts[call.script](args=call.args, client=pipeline)
            replies = await pipeline.execute(raise_on_error=False)
        return [calls.read_reply(call, reply) for call, reply in zip(batch, replies, strict=True)]

    async def queue_position(self, job_id: str) -> int | None:
        """As `JobStore.queue_position`."""
        return await self.run(calls.position(job_id))

    async def list_workers(self) -> list[WorkerInfo]:
        """As `JobStore.list_workers`."""
        names = sorted(await cast(Any, self.client.smembers(keys.WORKERS)))
        if not names:
            return []
        beats = await cast(Any, self.client.mget([keys.worker(name.decode()) for name in names]))
        read = (read_worker(beat) for beat in beats if beat is not None)
        return [info for info in read if info is not None]

    async def load(self, job_id: str) -> JobRecord | None:
        """Return a job's record, or None where it is unknown."""
        return read_job(await cast(Any, self.client.hgetall(keys.job(job_id))))

    async def state(self, job_id: str) -> JobState | None:
        """Return a job's state, or None where it is unknown."""
        return read_state(await cast(Any, self.client.hget(keys.job(job_id), "state")))

    async def states(self, job_ids: Sequence[str]) -> list[JobState | None]:
        """As `JobStore.states`."""
        async with self.client.pipeline(transaction=False) as pipeline:
            for job_id in job_ids:
                pipeline.hget(keys.job(job_id), "state")
            return [read_state(reply) for reply in await pipeline.execute()]

    async def load_ends(self, job_ids: Sequence[str]) -> list[EndedJob]:
        """As `JobStore.load_ends`."""
        ends: list[EndedJob] = []
        for some in chunks(job_ids, MAX_READ_AT_ONCE):
            async with self.client.pipeline(transaction=False) as pipeline:
                queue_end_reads(pipeline, some)
                ends += read_ends(some, await pipeline.execute())
        return ends

    async def read_stream(self, job_id: str, position: StreamPosition) -> list[Any]:
        """As `JobStore.read_stream`."""
        async with self.client.pipeline(transaction=True) as pipeline:
            queue_stream_read(pipeline, job_id, position)
            return await pipeline.execute()

    async def num_tokens(self, job_id: str) -> int:
        """Return how many generated tokens are stored."""
        return int(await cast(Any, self.client.strlen(keys.tokens(job_id)))) // 4

    async def read_tokens(self, job_id: str, start: int = 0) -> list[int]:
        """Return the generated token ids from index `start` on."""
        data = await cast(Any, self.client.getrange(keys.tokens(job_id), start * 4, -1))
        return calls.decode_tokens(data)
