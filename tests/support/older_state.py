"""A Redis that loses its last writes, as after a failover to a lagging replica."""

from __future__ import annotations

from typing import Any


class OlderState:
    """The whole content of a server at one moment, and the way back to it."""

    def __init__(self, redis: Any) -> None:
        self._redis = redis
        self.content = {key: (redis.dump(key), redis.pttl(key)) for key in redis.scan_iter("*")}

    def restore(self) -> None:
        """Bring the server back to that moment."""
        self._redis.flushall()
        for key, (value, ttl_ms) in self.content.items():
            self._redis.restore(key, max(ttl_ms, 0), value)
