"""Tokens per second: lately, and with full batches."""

from __future__ import annotations

import time
from typing import Final

#: Seconds of work that are measured together.
_WINDOW_S: Final = 5.0
#: Batches that are so full, relative to the fullest ones lately, tell the speed.
_FULL: Final = 0.8
#: Share of the fullest batches that is forgotten per window.
_FORGOTTEN: Final = 0.01
#: Weight of a new window in the speed.
_WEIGHT: Final = 0.3


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


class BusySpeed:
    """Tokens per second, prompts included, that an engine computes while its batches are full.

    Small batches compute fewer tokens per second. So only windows count whose batches are nearly as
    full as the fullest ones lately; an engine that was never full tells the speed that it had. Not
    thread-safe: the thread of the engine link notes steps.
    """

    def __init__(self) -> None:
        self._num_tokens = 0
        self._time_s = 0.0
        self._seq_seconds = 0.0
        self._fullest = 0.0
        #: Tokens per second; None before the first window.
        self.tokens_per_s: float | None = None

    def note_step(self, num_seqs: int, num_tokens: int, time_s: float) -> None:
        """Count a step.

        Args:
            num_seqs: requests in the step.
            num_tokens: that it computed.
            time_s: seconds since the step before it, or that it took if the engine was idle.
        """
        self._num_tokens += num_tokens
        self._time_s += time_s
        self._seq_seconds += num_seqs * time_s
        if self._time_s >= _WINDOW_S:
            self._end_window()

    def _end_window(self) -> None:
        speed, mean_seqs = self._num_tokens / self._time_s, self._seq_seconds / self._time_s
        self._num_tokens, self._time_s, self._seq_seconds = 0, 0.0, 0.0
        self._fullest *= 1 - _FORGOTTEN
        if self.tokens_per_s is None or mean_seqs > self._fullest / _FULL:
            self.tokens_per_s = speed
        elif mean_seqs >= self._fullest * _FULL:
            self.tokens_per_s += _WEIGHT * (speed - self.tokens_per_s)
        self._fullest = max(self._fullest, mean_seqs)
