"""Waits for plain Celery tasks in several lists at once, without taking any off for good."""

from __future__ import annotations

import contextlib
import select
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from redis import Redis
from redis.exceptions import RedisError

from batchmill.producer.protocol import keys

#: How long Redis holds a request on an empty list: after that, the connection proves to be alive.
_HOLD_S = 10
#: A reply that is so late will not come any more.
_LATE_S = 15.0


@dataclass(slots=True)
class _Request:
    """A request for one list's next task, on a connection of its own."""

    connection: Any
    sent_at: float = 0.0
    is_pending: bool = False


class TaskArrivals:
    """Wakes its thread when a task arrives in one of some lists.

    Redis pops from several lists in one blocking call only if the caller then is the only one who
    has the element. `BLMOVE` keeps it in Redis, but waits for one list, so there is a connection
    per list. Redis gives a new task to one of the workers that wait.
    """

    def __init__(self, client: Redis) -> None:
        """Take connections from a client's pool."""
        self._pool: Any = client.connection_pool
        self._requests: dict[str, _Request] = {}

    def wait(self, lists: Iterable[str], timeout_s: float) -> bool:
        """Return True when a task may have arrived in one of the lists, False after the timeout.

        Raises:
            redis.exceptions.RedisError: Redis did not reply, or it is full.
        """
        wanted = set(lists)
        for name in self._requests.keys() - wanted:
            self._drop(name)
        for name in wanted:
            self._send(name)
        by_socket = {request.connection._sock: name for name, request in self._requests.items()}
        readable, _, _ = select.select(list(by_socket), [], [], timeout_s)
        replies = [self._read(by_socket[connected]) for connected in readable]
        return any(reply is not None for reply in replies)

    def close(self) -> None:
        """Give the connections back. A task that a request moves meanwhile stays in Redis."""
        for name in list(self._requests):
            self._drop(name)

    def _send(self, name: str) -> None:
        """Send the request for a list unless it is pending."""
        request = self._requests.get(name)
        if request is not None and request.is_pending:
            if time.monotonic() - request.sent_at < _LATE_S:
                return
            self._drop(name)
            request = None
        if request is None:
            request = self._requests[name] = _Request(self._pool.get_connection())
        try:
            arguments = (name, keys.arrived(name), "RIGHT", "LEFT", _HOLD_S)
            request.connection.send_command("BLMOVE", *arguments)
        except (RedisError, OSError):
            self._drop(name)
            raise
        request.sent_at, request.is_pending = time.monotonic(), True

    def _read(self, name: str) -> Any:
        request = self._requests[name]
        try:
            reply = request.connection.read_response()
        except (RedisError, OSError):
            self._drop(name)
            raise
        request.is_pending = False
        return reply

    def _drop(self, name: str) -> None:
        connection = self._requests.pop(name).connection
        with contextlib.suppress(RedisError, OSError):
            connection.disconnect()
        self._pool.release(connection)
