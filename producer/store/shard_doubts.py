"""`ShardDoubts`: which shards have failed lately, so that they are given less time. No I/O."""

from __future__ import annotations

import time
from typing import Final

#: Longest wait for a shard that need not reply: one that is away stops only its own jobs.
COMPARE_LIMIT_S: Final = 2.0
#: Seconds for which a shard that failed is doubted.
_DOUBT_S: Final = 10.0
#: Seconds that it gets then.
_DOUBTED_LIMIT_S: Final = 0.3


class ShardDoubts:
    """Remembers which shards have failed. Thread-safe."""

    def __init__(self) -> None:
        self._failed_at: dict[str, float] = {}

    def is_doubted(self, name: str) -> bool:
        """Return whether a shard has failed lately."""
        failed_at = self._failed_at.get(name)
        return failed_at is not None and time.monotonic() - failed_at < _DOUBT_S

    def limit_s(self, name: str, usual_s: float) -> float:
        """Return how long to wait for a shard: `usual_s`, or not long if it has failed lately."""
        return _DOUBTED_LIMIT_S if self.is_doubted(name) else usual_s

    def note(self, name: str, *, has_failed: bool) -> bool:
        """Note whether a shard has failed; return whether that differs from the time before."""
        had_failed = name in self._failed_at
        if has_failed:
            self._failed_at[name] = time.monotonic()
        else:
            self._failed_at.pop(name, None)
        return had_failed != has_failed
