"""The connections that show Redis that the processes of sessions live."""

from __future__ import annotations

from typing import Any

from batchmill.producer.protocol import keys


class SessionConnections:
    """Opens and closes them, as the processes and their kernel do."""

    def __init__(self, redis: Any) -> None:
        self._redis = redis
        self._connections: dict[str, Any] = {}

    def connect(self, session: str) -> None:
        connection = self._redis.pubsub()
        connection.subscribe(keys.session_channel(session))
        assert connection.get_message(timeout=60) is not None
        self._connections[session] = connection

    def disconnect(self, session: str) -> None:
        """Close the connection, as the kernel does when the process ends."""
        self._connections.pop(session).close()
        channel = keys.session_channel(session)
        while self._redis.pubsub_numsub(channel)[0][1]:
            pass  # Redis has not seen the end of the connection yet

    def close(self) -> None:
        for connection in self._connections.values():
            connection.close()
