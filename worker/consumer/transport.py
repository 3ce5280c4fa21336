"""kombu's Redis transport, for queues that any program may push to.

It differs in two ways. Elements that are not valid messages become dead letters before kombu or
Celery reads them. And announcements are not noted in `unacked`: the record counts, and a lost
announcement is repeated, so the note would only cost two round trips per job. Worse, a full Redis
pops a message and then refuses the note, which ends the worker. A job that comes inside its
message keeps its note until it has a record.

Used through the scheme of the app's `broker_read_url`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from queue import Empty
from typing import Any

import structlog
from kombu.transport import TRANSPORT_ALIASES, redis, virtual
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import loads
from kombu.utils.uuid import uuid
from redis.exceptions import OutOfMemoryError, RedisError, ResponseError

from batchmill.producer.protocol.records import DeadLetterKind
from batchmill.producer.store.job_store import JobStore
from batchmill.worker.errors import MalformedMessage

from .queue_message import read_queue_message

#: Scheme of broker URLs, and name of the transport.
TRANSPORT_NAME = "batchmill"
#: Queues whose elements are checked; Celery's own (remote control replies) are left alone.
_QUEUE_PREFIX = "batchmill."
_log = structlog.stdlib.get_logger("batchmill.transport")


def register_transport() -> None:
    """Register the transport with kombu under its name."""
    TRANSPORT_ALIASES[TRANSPORT_NAME] = f"{__name__}:Transport"


class QoS(redis.QoS):
    """Bookkeeping of unacknowledged messages; announcements are kept in this process only."""

    def append(self, message: Any, delivery_tag: str) -> None:
        """Note a message as delivered and not acknowledged."""
        if delivery_tag not in self.channel.announcements:
            try:
                super().append(message, delivery_tag)
                return
            except OutOfMemoryError:
                # A full Redis refuses the note only after it has popped the message. Kept here, the
                # message is lost only with this process.
                self.channel.announcements[delivery_tag] = self.channel.newest_element
        virtual.QoS.append(self, message, delivery_tag)

    def ack(self, delivery_tag: str) -> None:
        """Remove an acknowledged message."""
        if self.channel.announcements.pop(delivery_tag, None) is None:
            super().ack(delivery_tag)
        else:
            virtual.QoS.ack(self, delivery_tag)

    def restore_by_tag(self, tag: str, client: Any = None, leftmost: bool = False) -> None:
        """Put a message back on its queue."""
        announcement = self.channel.announcements.pop(tag, None)
        if announcement is None:
            super().restore_by_tag(tag, client=client, leftmost=leftmost)
            return
        key, element = announcement
        with self.channel.conn_or_acquire(client) as connected:
            connected.rpush(key, element)


class Channel(redis.Channel):
    """A channel that reads queue elements defensively."""

    QoS = QoS

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        #: Unacknowledged announcements by delivery tag: list key and element.
        self.announcements: dict[str, tuple[bytes, bytes]] = {}
        #: The element that is being delivered: list key and content.
        self.newest_element: tuple[bytes, bytes] = (b"", b"")
        #: Called with each element that became a dead letter, and the reason.
        self.on_refused: Callable[[bytes, MalformedMessage], None] | None = None
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

    def _next_delivery_tag(self) -> str:
        """Return a unique tag, without asking the kernel for random bytes each time."""
        return f"{self._tag_prefix}.{next(self._tag_numbers)}"

    def _brpop_read(self, **options: Any) -> bool:
        """Read the reply to a BRPOP and deliver it; messages of our queues are checked first."""
        try:
            reply = self._read_reply(options)
            if not reply:
                raise Empty
            key, element = reply
            queue = bytes_to_str(key).rsplit(self.sep, 1)[0]
            self._queue_cycle.rotate(queue)
            message = self._open_element(queue, key, element)
            if message is not None:
                self.connection._deliver(message, queue)
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

    def _open_element(self, queue: str, key: bytes, element: bytes) -> Any:
        """Return the message in an element, or None if the element became a dead letter."""
        if not queue.startswith(_QUEUE_PREFIX):
            return loads(bytes_to_str(element))
        try:
            checked = read_queue_message(element)
        except MalformedMessage as malformed:
            self._add_dead_letter(queue, element, malformed)
            return None
        self.newest_element = key, element
        if checked.is_announcement:
            self.announcements[checked.delivery_tag] = key, element
        return checked.message

    def _add_dead_letter(self, queue: str, element: bytes, malformed: MalformedMessage) -> None:
        reason = f"{malformed.code}: {malformed}"
        _log.error("message_malformed", queue=queue, reason=reason, num_bytes=len(element))
        try:
            with self.conn_or_acquire() as client:
                JobStore(client).dead_letter_add(
                    kind=DeadLetterKind.MESSAGE, reason=reason, payload=element, source=queue
                )
        except RedisError as error:
            # No worker could ever run it, so only its trace is lost, and this worker continues.
            _log.error("dead_letter_lost", queue=queue, error=type(error).__name__)
        if self.on_refused is not None:
            self.on_refused(element, malformed)

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
