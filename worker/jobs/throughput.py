"""The rate of generated tokens in the last seconds."""

from __future__ import annotations

import time


class Throughput:
    """Counts tokens; the rate covers the time since its last reading, at least `min_window_s`."""

    def __init__(self, min_window_s: float = 1.0) -> None:
        self._min_window_s = min_window_s
        self._count = 0
        self._window_start = time.monotonic()
        self._rate = 0.0
        self.total = 0

    def count(self, num_tokens: int) -> None:
        """Add generated tokens. One thread only."""
        self.total += num_tokens

    def rate(self) -> float:
        """Return tokens per second since the previous reading."""
        now = time.monotonic()
        elapsed_s = now - self._window_start
        if elapsed_s >= self._min_window_s:
            self._rate = (self.total - self._count) / elapsed_s
            self._count, self._window_start = self.total, now
        return self._rate
