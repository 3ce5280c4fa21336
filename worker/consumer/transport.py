"""kombu's Redis transport, reduced to what a worker of ours consumes: announcements of jobs.

It differs in four ways. It pops a queue's announcements, not what Celery's senders push to the
queue: `TaskMover` takes that, because a message that was popped is lost if this process dies.
Elements that are not valid messages become dead letters before kombu or Celery reads them. And
messages are not noted in `unacked`: the record counts, and a lost announcement is repeated, so the
note would only cost two round trips per job. Nor are the notes of other programs restored, which
may give their tasks more time. A task that a worker sends, because it follows a job in a workflow,
is pushed once: kombu pushes it again if the reply was lost, and so does a worker that repeats the
report of one that died.

Used through the scheme of the app's `broker_read_url`, and of `broker_write_url` in a worker.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from queue import Empty
from typing import Any

import structlog
from kombu.transport import TRANSPORT_ALIASES, redis, virtual
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import dumps
from kombu.utils.uuid import uuid
from redis.exceptions import RedisError, ResponseError

from batchmill.producer.encryption.settings import find_key_ring
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.content import SEALED_NAME
from batchmill.producer.protocol.records import DeadLetterKind
from batchmill.producer.store.job_store import JobStore
from batchmill.producer.store.letter_labels import kept_element, message_labels
from batchmill.producer.store.primary import following_primary
from batchmill.worker.errors import MalformedMessage

from .queue_message import read_queue_message
from .workflow import open_follow_ups

#: Scheme of broker URLs, and name of the transport.
TRANSPORT_NAME = "batchmill"
#: Option of the transport: the `SentinelService` whose primary it connects to.
SENTINEL_OPTION = "sentinel_service"
_log = structlog.stdlib.get_logger("batchmill.transport")
_ANNOUNCED = keys.announced("")
#: How long it is remembered that a task was sent. Reports of ends are repeated after half a minute;
#: an outage of all workers may be longer.
_SENT_TTL_MS = 3_600_000


def register_transport() -> None:
    """Register the transport with kombu under its name."""
    TRANSPORT_ALIASES[TRANSPORT_NAME] = f"{__name__}:Transport"


class QoS(redis.QoS):
    """Bookkeeping of unacknowledged messages, in this process only."""

    def append(self, message: Any, delivery_tag: str) -> None:
        """Note a message as delivered and not acknowledged."""
        virtual.QoS.append(self, message, delivery_tag)

    def ack(self, delivery_tag: str) -> None:
        """Remove an acknowledged message."""
        self.channel.announcements.pop(delivery_tag, None)
        virtual.QoS.ack(self, delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Remove a message, and put it back on its list if it has to be delivered again."""
        if requeue:
            self.restore_by_tag(delivery_tag)
        self.ack(delivery_tag)

    def restore_by_tag(self, tag: str, client: Any = None, leftmost: bool = False) -> None:
        """Put a message back at the head of its list."""
        key, element = self.channel.announcements.pop(tag, (None, None))
        if key is not None:
            with self.channel.conn_or_acquire(client) as connected:
                connected.rpush(key, element)

    def restore_visible(self, *_: Any, **__: Any) -> None:
        """Do nothing: this worker leaves nothing in `unacked`, and the rest is not its own."""


class Channel(redis.Channel):
    """A channel that pops announcements, and reads them defensively."""

    QoS = QoS

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        #: Unacknowledged announcements by delivery tag: list key and element.
        self.announcements: dict[str, tuple[bytes, bytes]] = {}
        #: Returns the lists of announcements for this worker alone that are asked now.
        self.handed_lists: Callable[[], list[str]] = list
        self._tag_prefix = uuid()
        self._tag_numbers = count()
        self._shared_client: Any = None
        super().__init__(*args, **kwargs)

    @contextmanager
    def conn_or_acquire(self, client: Any = None) -> Iterator[Any]:
        """Lend a shared client; kombu makes one per command, which takes a fifth of its time."""
        if client is None:
            client = self._shared_client
            if client is None or client.connection_pool is not self.pool:
                client = self._shared_client = self._create_client()
        yield client

    def _get_pool(self, asynchronous: bool = False) -> Any:
        pool = super()._get_pool(asynchronous)
        service = self.connection.client.transport_options.get(SENTINEL_OPTION)
        pool.connection_class = following_primary(pool.connection_class, service)
        return pool

    def _next_delivery_tag(self) -> str:
        """Return a unique tag, without asking the kernel for random bytes each time."""
        return f"{self._tag_prefix}.{next(self._tag_numbers)}"

    def _size(self, queue: str) -> int:
        """Return the number of announcements of a queue."""
        with self.conn_or_acquire() as client:
            return int(client.llen(keys.announced(queue)))

    def _put(self, queue: str, message: dict[str, Any], **options: Any) -> None:
        """Push a message; that of a task is pushed only once, however often this is called."""
        headers = message.get("headers") or {}
        task_id = headers.get("id")
        if not task_id or queue in getattr(self, "_expires", ()):
            super()._put(queue, message, **options)
            return
        key = self._q_for_pri(queue, self._get_message_priority(message, reverse=False))
        sending = f"{task_id}:{headers.get('retries') or 0}"
        with self.conn_or_acquire() as client:
            store = JobStore(client)
            if not store.send_celery_task(
                key, dumps(message), sending=sending, ttl_ms=_SENT_TTL_MS
            ):
                _log.info("task_sent_before", task_id=task_id, queue=queue)

    def _brpop_start(self, timeout: Any = None) -> None:
        """Ask Redis for an announcement, of the first queue in order that has one."""
        queues = self._queue_cycle.consume(len(self.active_queues))
        if not queues:
            return
        announced = [*self.handed_lists(), *(keys.announced(queue) for queue in queues)]
        connection = self._in_poll = self.client.connection
        self._brpop_sent_at: Any = time.monotonic()
        connection.send_command("BRPOP", *announced, timeout or self.brpop_timeout)

    def _brpop_read(self, **options: Any) -> bool:
        """Read the reply to a BRPOP and deliver it, if it is a valid message."""
        try:
            reply = self._read_reply(options)
            if not reply:
                raise Empty
            key, element = reply
            message = self._open_element(bytes_to_str(key), element)
            if message is not None:
                self.connection._deliver(message, self._note_announcement(key, element, message))
            return True
        finally:
            self._in_poll: Any = None
            self._flush_brpop_reauth()

    def _read_reply(self, options: dict[str, Any]) -> Any:
        try:
            return self.client.parse_response(self.client.connection, "BRPOP", **options)
        except self.connection_errors:
            self.client.connection.disconnect()
            raise

    def _open_element(self, key: str, element: bytes) -> dict[str, Any] | None:
        """Return the message in an element, or None if the element became a dead letter."""
        try:
            message = read_queue_message(element)
        except MalformedMessage as malformed:
            self._add_dead_letter(key.removeprefix(_ANNOUNCED), element, malformed)
            return None
        if SEALED_NAME in message.embed:
            message = open_follow_ups(message, find_key_ring())
        return message.message

    def _note_announcement(self, key: bytes, element: bytes, message: dict[str, Any]) -> str:
        """Note where a message goes if it is put back, and return its queue.

        One from a list for this worker alone goes to its queue then, where any worker finds it.
        """
        properties = message["properties"]
        queue: str = bytes_to_str(key)
        if queue.startswith(_ANNOUNCED):
            queue = queue.removeprefix(_ANNOUNCED)
        else:
            queue = str(properties["delivery_info"].get("routing_key"))
            key = keys.announced(queue).encode()
        self.announcements[properties["delivery_tag"]] = key, element
        self._queue_cycle.rotate(queue)
        return queue

    def _add_dead_letter(self, queue: str, element: bytes, malformed: MalformedMessage) -> None:
        reason = f"{malformed.code}: {malformed}"
        payload, reason = kept_element(element, reason)
        _log.error("message_malformed", queue=queue, reason=reason, num_bytes=len(element))
        try:
            with self.conn_or_acquire() as client:
                JobStore(client).dead_letter_add(
                    kind=DeadLetterKind.MESSAGE,
                    reason=reason,
                    payload=payload,
                    source=queue,
                    labels=message_labels(element),
                )
        except RedisError as error:
            # No worker could ever run it, so only its trace is lost, and this worker continues.
            _log.error("dead_letter_lost", queue=queue, error=type(error).__name__)

    def _deliver_fanout_message(self, message: Any, exchange: str) -> bool:
        """Deliver a broadcast (remote control), unless it is malformed."""
        properties = message.get("properties") if isinstance(message, dict) else None
        if not isinstance(properties, dict) or "delivery_tag" not in properties:
            _log.warning("broadcast_malformed", exchange=exchange)
            return True
        return bool(super()._deliver_fanout_message(message, exchange))


class Transport(redis.Transport):
    """kombu's Redis transport with our channel."""

    Channel = Channel
    #: A Redis that refuses (read-only, too few replicas, a full disk, a key of another type) must
    #: not end the worker: Celery connects again, with a backoff and a new lookup of the name.
    connection_errors = (*redis.Transport.connection_errors, ResponseError)
    #: Seconds that Redis holds a BRPOP on empty queues. A closing channel waits for its reply.
    brpop_timeout: Any = 0.5
