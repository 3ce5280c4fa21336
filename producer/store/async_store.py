"""The asyncio store: it runs script calls and reads over one Redis client."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self, TypeVar

from redis.asyncio import Redis as AsyncRedis
from redis.exceptions import NoScriptError, ResponseError

from batchmill.producer.encryption.key_ring import KeyRing
from batchmill.producer.encryption.settings import find_key_ring
from batchmill.producer.protocol import keys, reads
from batchmill.producer.protocol.calls.call import Call, Read, read_reply
from batchmill.producer.protocol.records import WorkerInfo, read_worker
from batchmill.producer.protocol.scripts import SCRIPT_NAMES, script_source

from .call_limits import time_limit
from .connection import async_connect, timeout_of
from .replication import ReplicaWait

Value = TypeVar("Value")


class AsyncStore:
    """Runs script calls and reads, which are values. Knows none of them by name.

    Owns nothing but the client it is given. Every method may raise `redis.exceptions.RedisError`.
    A client with retries repeats a call whose reply was lost; each script is made for that. Every
    method ends within the client's time limit.
    """

    def __init__(
        self,
        client: AsyncRedis,
        *,
        replica_wait: ReplicaWait | None = None,
        key_ring: KeyRing | None = None,
    ) -> None:
        """Bind to a client that returns bytes (`decode_responses=False`).

        Args:
            client: the connection.
            replica_wait: for `run_confirmed` and `run_all_confirmed`; without it they are as `run`
                and `run_all`.
            key_ring: seals and opens content; None takes the keys of the environment.

        Raises:
            EncryptionUnavailable: a key of the environment is malformed.
        """
        self.client = client
        self.key_ring = find_key_ring() if key_ring is None else key_ring
        self._timeout_s = timeout_of(client)
        self._replica_wait = replica_wait
        # redis-py annotates commands for both kinds of clients at once.
        self._commands: Any = client
        self._scripts: dict[str, Any] = {
            name: client.register_script(script_source(name)) for name in SCRIPT_NAMES
        }

    @classmethod
    def from_url(
        cls,
        url: str,
        *,
        timeout_s: float | None = None,
        replica_wait: ReplicaWait | None = None,
        key_ring: KeyRing | None = None,
    ) -> Self:
        """Connect to `redis://`, `rediss://`, `unix://` or `redis+socket://`.

        Args:
            url: the broker's URL.
            timeout_s: seconds that a call may take in all; None takes the environment's.
            replica_wait: see the class.
            key_ring: see the class.
        """
        client = async_connect(url, timeout_s=timeout_s)
        return cls(client, replica_wait=replica_wait, key_ring=key_ring)

    async def aclose(self) -> None:
        """Close the client's connections."""
        await self.client.aclose()

    def pubsub(self) -> Any:
        """Return a subscription, over a connection of its own."""
        return self._commands.pubsub()

    async def run(self, call: Call[Value]) -> Value:
        """Run one script call and return its parsed reply."""
        try:
            with time_limit(self._timeout_s):
                reply = await self._scripts[call.script](args=call.resolved_args(self.key_ring))
        except ResponseError as error:
            reply = error
        return read_reply(call, reply, self.key_ring)

    async def run_all(self, calls: Sequence[Call[Value]]) -> list[Value]:
        """Run script calls in one round trip. Each is atomic, the pipeline as a whole is not."""
        with time_limit(self._timeout_s):
            async with self._commands.pipeline(transaction=False) as pipeline:
                for call in calls:
                    pipeline.evalsha(
                        self._scripts[call.script].sha, 0, *call.resolved_args(self.key_ring)
                    )
                replies = await pipeline.execute(raise_on_error=False)
            await self._run_unknown(calls, replies)
        return [
            read_reply(call, reply, self.key_ring)
            for call, reply in zip(calls, replies, strict=True)
        ]

    async def run_confirmed(self, call: Call[Value]) -> Value:
        """Run one script call, and wait until the replicas have what it has written.

        Raises:
            NotConfirmed: too few of them have it.
        """
        if self._replica_wait is None:
            return await self.run(call)
        return (await self.run_all_confirmed([call]))[0]

    async def run_all_confirmed(self, calls: Sequence[Call[Value]]) -> list[Value]:
        """Run script calls, and wait once until the replicas have what they have written.

        Raises:
            NotConfirmed: too few of them have it.
        """
        if self._replica_wait is None:
            return await self.run_all(calls)
        with time_limit(self._timeout_s):
            replies = await self._run_and_wait(calls)
            if any(isinstance(reply, NoScriptError) for reply in replies):
                for name in {call.script for call in calls}:
                    await self._commands.script_load(script_source(name))
                replies = await self._run_and_wait(calls)
        *own, _, num_confirmed = replies
        values = [
            read_reply(call, reply, self.key_ring) for call, reply in zip(calls, own, strict=True)
        ]
        self._replica_wait.check(num_confirmed, values)
        return values

    async def _run_and_wait(self, calls: Sequence[Call[Any]]) -> list[Any]:
        """Run calls and wait, on one connection: after a failover it would lead elsewhere."""
        assert self._replica_wait is not None
        async with self._commands.pipeline(transaction=False) as pipeline:
            for call in calls:
                pipeline.evalsha(
                    self._scripts[call.script].sha, 0, *call.resolved_args(self.key_ring)
                )
            self._replica_wait.queue(pipeline)
            replies: list[Any] = await pipeline.execute(raise_on_error=False)
        return replies

    async def _run_unknown(self, calls: Sequence[Call[Any]], replies: list[Any]) -> None:
        """Run the calls whose script the server did not know, and fill in their replies.

        They run after all the others: if order matters, the calls must be of one script.

        A restarted server knows no script. redis-py's own way is to ask before each batch which
        scripts are known, which costs a round trip.
        """
        unknown = [i for i, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if not unknown:
            return
        async with self._commands.pipeline(transaction=False) as pipeline:
            for i in unknown:
                await self._scripts[calls[i].script](
                    args=calls[i].resolved_args(self.key_ring), client=pipeline
                )
            repeated = await pipeline.execute(raise_on_error=False)
        for i, reply in zip(unknown, repeated, strict=True):
            replies[i] = reply

    async def read(self, read: Read[Value]) -> Value:
        """Read in one round trip."""
        with time_limit(self._timeout_s):
            pipeline = self._commands.pipeline(transaction=read.is_atomic)
            async with pipeline:
                read.queue(pipeline)
                replies = await pipeline.execute(raise_on_error=not read.keeps_errors)
        return read.parsed(replies, self.key_ring)

    async def list_workers(self) -> list[WorkerInfo]:
        """Return the workers that are alive, by name. Unregister those that are not."""
        names = await self.read(reads.worker_names())
        heartbeats = await self.read(reads.heartbeats(names))
        gone = [name for name, beat in zip(names, heartbeats, strict=True) if beat is None]
        if gone:
            await self._commands.srem(keys.WORKERS, *gone)
        workers = (read_worker(beat) for beat in heartbeats if beat is not None)
        return [worker for worker in workers if worker is not None]
