# Generated from async_store.py by tests/structure/generate_sync.py: change that file.
"""The synchronous store: it runs script calls and reads over one Redis client."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self, TypeVar

from redis import Redis
from redis.exceptions import NoScriptError

from batchmill.producer.encryption.key_ring import KeyRing
from batchmill.producer.encryption.settings import find_key_ring
from batchmill.producer.payloads.ciphers import IncomingContent, OutgoingContent
from batchmill.producer.payloads.object_store import ObjectStore
from batchmill.producer.payloads.settings import find_object_store
from batchmill.producer.protocol import keys, reads
from batchmill.producer.protocol.calls import media as media_calls
from batchmill.producer.protocol.calls import payloads as payload_calls
from batchmill.producer.protocol.calls.call import Call, Read, read_reply
from batchmill.producer.protocol.content import Cipher, Content, Place
from batchmill.producer.protocol.media import NewMedia
from batchmill.producer.protocol.payloads import READS_OBJECTS, references_in
from batchmill.producer.protocol.records import WorkerInfo, read_worker
from batchmill.producer.protocol.replies import MediaStatus
from batchmill.producer.protocol.scripts import SCRIPT_NAMES, script_source

from .call_limits import time_limit
from .commands import run_commands
from .connection import connect, timeout_of
from .replication import ReplicaWait
from .sealing import Args, resolved_args

Value = TypeVar("Value")


class Store:
    """Runs script calls and reads, which are values. Knows none of them by name.

    Owns nothing but the client it is given. Every method may raise `redis.exceptions.RedisError`.
    A client with retries repeats a call whose reply was lost; each script is made for that. Every
    method ends within the client's time limit.
    """

    def __init__(
        self,
        client: Redis,
        *,
        replica_wait: ReplicaWait | None = None,
        key_ring: KeyRing | None = None,
        objects: ObjectStore | None = None,
    ) -> None:
        """Bind to a client that returns bytes (`decode_responses=False`).

        Args:
            client: the connection.
            replica_wait: for `run_confirmed` and `run_all_confirmed`; without it they are as `run`
                and `run_all`.
            key_ring: seals and opens content; None takes the keys of the environment.
            objects: holds content that is too large; None takes the store of the environment.

        Raises:
            EncryptionUnavailable: a key of the environment is malformed.
            PayloadsUnavailable: the object store of the environment cannot be used.
        """
        self.client = client
        self.key_ring = find_key_ring() if key_ring is None else key_ring
        self.objects = find_object_store() if objects is None else objects
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
        objects: ObjectStore | None = None,
        shard_name: str = "",
    ) -> Self:
        """Connect to `redis://`, `rediss://`, `unix://` or `redis+socket://`.

        Args:
            url: the broker's URL.
            timeout_s: seconds that a call may take in all; None takes the environment's.
            replica_wait: see the class.
            key_ring: see the class.
            objects: see the class.
            shard_name: of the broker, if it is one of several; errors name it.
        """
        client = connect(url, timeout_s=timeout_s, shard_name=shard_name)
        return cls(client, replica_wait=replica_wait, key_ring=key_ring, objects=objects)

    def close(self) -> None:
        """Close the client's connections."""
        self.client.close()

    def pubsub(self) -> Any:
        """Return a subscription, over a connection of its own."""
        return self._commands.pubsub()

    @property
    def reads(self) -> tuple[str, ...]:
        """What this program can read: values of which keys, and objects if it has their store."""
        return (*self.key_ring.key_ids, *(() if self.objects is None else (READS_OBJECTS,)))

    def run(self, call: Call[Value]) -> Value:
        """Run one script call and return its parsed reply."""
        return (self.run_all([call]))[0]

    def run_all(self, calls: Sequence[Call[Value]]) -> list[Value]:
        """Run script calls in one round trip. Each is atomic, all of them together are not."""
        if not calls:
            return []
        args = self._resolved(calls)
        with time_limit(self._timeout_s):
            replies = run_commands(self.client, self._commands_of(calls, args))
            self._run_unknown(calls, args, replies)
        return self._read_replies(calls, replies)

    def _commands_of(self, calls: Sequence[Call[Any]], args: Sequence[Args]) -> list[Args]:
        pairs = zip(calls, args, strict=True)
        return [["EVALSHA", self._scripts[call.script].sha, 0, *some] for call, some in pairs]

    def run_confirmed(self, call: Call[Value]) -> Value:
        """Run one script call, and wait until the replicas have what it has written.

        Raises:
            NotConfirmed: too few of them have it.
        """
        if self._replica_wait is None:
            return self.run(call)
        return (self.run_all_confirmed([call]))[0]

    def run_all_confirmed(self, calls: Sequence[Call[Value]]) -> list[Value]:
        """Run script calls, and wait once until the replicas have what they have written.

        Raises:
            NotConfirmed: too few of them have it.
        """
        if self._replica_wait is None:
            return self.run_all(calls)
        args = self._resolved(calls)
        with time_limit(self._timeout_s):
            replies = self._run_and_wait(calls, args)
            if any(isinstance(reply, NoScriptError) for reply in replies):
                for name in {call.script for call in calls}:
                    self._commands.script_load(script_source(name))
                replies = self._run_and_wait(calls, args)
        *own, _, num_confirmed = replies
        values = self._read_replies(calls, own)
        self._replica_wait.check(num_confirmed, values)
        return values

    def _run_and_wait(self, calls: Sequence[Call[Any]], args: Sequence[Args]) -> list[Any]:
        """Run calls and wait, on one connection: after a failover it would lead elsewhere."""
        assert self._replica_wait is not None
        with self._commands.pipeline(transaction=False) as pipeline:
            for call, some in zip(calls, args, strict=True):
                pipeline.evalsha(self._scripts[call.script].sha, 0, *some)
            self._replica_wait.queue(pipeline)
            replies: list[Any] = pipeline.execute(raise_on_error=False)
        return replies

    def _run_unknown(
        self, calls: Sequence[Call[Any]], args: Sequence[Args], replies: list[Any]
    ) -> None:
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
                self._scripts[calls[i].script](args=args[i], client=pipeline)
            repeated = pipeline.execute(raise_on_error=False)
        for i, reply in zip(unknown, repeated, strict=True):
            replies[i] = reply

    def read(self, read: Read[Value]) -> Value:
        """Read in one round trip."""
        with time_limit(self._timeout_s):
            pipeline = self._commands.pipeline(transaction=read.is_atomic)
            with pipeline:
                read.queue(pipeline)
                replies = pipeline.execute(raise_on_error=not read.keeps_errors)
        cipher: Cipher = self.key_ring
        if self.objects is not None and read.opens is not None:
            cipher = self._cipher_of(replies)
        return read.parsed(replies, cipher)

    def write_object(self, content: Content) -> bytes | None:
        """Write content to the object store, and return the reference to store instead of it.

        Returns:
            None if it is short enough for Redis, or there is no object store.

        Raises:
            PayloadUnreachable: it could not be written in time.
        """
        if self.objects is None:
            return None
        outgoing = OutgoingContent(self.key_ring, self.objects.threshold_bytes)
        value = content.resolved(outgoing)
        self._write_objects(outgoing)
        return value if outgoing.objects and isinstance(value, bytes) else None

    def open_object(self, value: bytes, place: Place) -> bytes:
        """Return the content that a reference stands for.

        Raises:
            UnreadableContent: it cannot be read or opened.
        """
        return (self._cipher_of(value)).open(value, place)

    def put_media(
        self, media: Sequence[NewMedia], *, max_memory_percent: int | None = None
    ) -> list[MediaStatus]:
        """Store pictures and sounds, one after another; those that are stored are not sent again.

        Raises:
            PayloadUnreachable: one could not be written to the object store in time.
        """
        known = self.run(media_calls.touch(media))
        statuses = []
        for each, is_known in zip(media, known, strict=True):
            status = MediaStatus.STORED
            if not is_known:
                status = self.run(media_calls.put(each, max_memory_percent=max_memory_percent))
            statuses.append(status)
        return statuses

    def _resolved(self, calls: Sequence[Call[Any]]) -> list[Args]:
        """Return the arguments to send. Content that is too large is in the object store then.

        So are the media that the calls bring along, there or in Redis. If there is no room for
        them, the script finds that out, and refuses the job.

        Raises:
            PayloadUnreachable: it could not be written in time; nothing was sent.
        """
        for call in calls:
            if call.media:
                self.put_media(call.media, max_memory_percent=call.max_memory_percent)
        if self.objects is None:
            return resolved_args(calls, self.key_ring)
        outgoing = OutgoingContent(self.key_ring, self.objects.threshold_bytes)
        args = resolved_args(calls, outgoing)
        self._write_objects(outgoing)
        return args

    def _write_objects(self, outgoing: OutgoingContent) -> None:
        """Write objects that Redis has noted before: the sweep finds those without a record."""
        if self.objects is not None and outgoing.objects:
            self.run(payload_calls.note(list(outgoing.objects)))
            self.objects.write(outgoing.objects)

    def _read_replies(self, calls: Sequence[Call[Value]], replies: Sequence[Any]) -> list[Value]:
        cipher: Cipher = self.key_ring
        if self.objects is not None:
            pairs = zip(calls, replies, strict=True)
            opened = [reply for call, reply in pairs if call.opens and not call.leaves_objects]
            cipher = self._cipher_of(opened)
        return [read_reply(call, reply, cipher) for call, reply in zip(calls, replies, strict=True)]

    def _cipher_of(self, replies: Any) -> Cipher:
        """Return what opens replies: with the objects that they refer to."""
        references = list(references_in(replies))
        if self.objects is None or not references:
            return self.key_ring
        objects = self.objects.read(references)
        return IncomingContent(self.key_ring, objects)

    def list_workers(self) -> list[WorkerInfo]:
        """Return the workers that are alive, by name. Unregister those that are not."""
        names = self.read(reads.worker_names())
        heartbeats = self.read(reads.heartbeats(names))
        gone = [name for name, beat in zip(names, heartbeats, strict=True) if beat is None]
        if gone:
            self._commands.srem(keys.WORKERS, *gone)
        workers = (read_worker(beat) for beat in heartbeats if beat is not None)
        return [worker for worker in workers if worker is not None]
