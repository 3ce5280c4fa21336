# Generated from async_store.py by tests/structure/generate_sync.py: change that file.
"""The synchronous store: it runs script calls and reads over one Redis client."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self, TypeVar

from redis import Redis
from redis.exceptions import NoScriptError, OutOfMemoryError

from batchmill.producer.protocol import keys, reads
from batchmill.producer.protocol.calls.call import Call, Read, read_reply
from batchmill.producer.protocol.records import WorkerInfo, read_worker
from batchmill.producer.protocol.scripts import SCRIPT_NAMES, script_source

from .connection import connect

Value = TypeVar("Value")


class Store:
    """Runs script calls and reads, which are values. Knows none of them by name.

    Owns nothing but the client it is given. Every method may raise `redis.exceptions.RedisError`.
    A client with retries repeats a call whose reply was lost; each script is made for that.
    """

    def __init__(self, client: Redis) -> None:
        """Bind to a client that returns bytes (`decode_responses=False`)."""
        self.client = client
        # redis-py annotates commands for both kinds of clients at once.
        self._commands: Any = client
        self._scripts: dict[str, Any] = {
            name: client.register_script(script_source(name)) for name in SCRIPT_NAMES
        }

    @classmethod
    def from_url(cls, url: str) -> Self:
        """Connect to `redis://`, `rediss://`, `unix://` or `redis+socket://`."""
        return cls(connect(url))

    def close(self) -> None:
        """Close the client's connections."""
        self.client.close()

    def pubsub(self) -> Any:
        """Return a subscription, over a connection of its own."""
        return self._commands.pubsub()

    def run(self, call: Call[Value]) -> Value:
        """Run one script call and return its parsed reply."""
        try:
            reply = self._scripts[call.script](args=call.args)
        except OutOfMemoryError as error:
            reply = error
        return read_reply(call, reply)

    def run_all(self, calls: Sequence[Call[Value]]) -> list[Value]:
        """Run script calls in one round trip. Each is atomic, the pipeline as a whole is not."""
        with self._commands.pipeline(transaction=False) as pipeline:
            for call in calls:
                pipeline.evalsha(self._scripts[call.script].sha, 0, *call.args)
            replies = pipeline.execute(raise_on_error=False)
        self._run_unknown(calls, replies)
        return [read_reply(call, reply) for call, reply in zip(calls, replies, strict=True)]

    def _run_unknown(self, calls: Sequence[Call[Any]], replies: list[Any]) -> None:
        """Run the calls whose script the server did not know, and fill in their replies.

        They run after all the others: if order matters, the calls must be of one script.

        A restarted server knows no script. redis-py's own way is to ask before each batch which
        scripts are known, which costs a round trip.
        """
        unknown = [i for i, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        if not unknown:
            return
        with self._commands.pipeline(transaction=False) as pipeline:
            for i in unknown:
                self._scripts[calls[i].script](args=calls[i].args, client=pipeline)
            repeated = pipeline.execute(raise_on_error=False)
        for i, reply in zip(unknown, repeated, strict=True):
            replies[i] = reply

    def read(self, read: Read[Value]) -> Value:
        """Read in one round trip."""
        with self._commands.pipeline(transaction=read.is_atomic) as pipeline:
            read.queue(pipeline)
            replies = pipeline.execute(raise_on_error=not read.keeps_errors)
            return read.parse(replies)

    def list_workers(self) -> list[WorkerInfo]:
        """Return the workers that are alive, by name. Unregister those that are not."""
        names = self.read(reads.worker_names())
        heartbeats = self.read(reads.heartbeats(names))
        gone = [name for name, beat in zip(names, heartbeats, strict=True) if beat is None]
        if gone:
            self._commands.srem(keys.WORKERS, *gone)
        workers = (read_worker(beat) for beat in heartbeats if beat is not None)
        return [worker for worker in workers if worker is not None]
