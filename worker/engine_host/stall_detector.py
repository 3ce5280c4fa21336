"""Measures for how long the engine's loop has stood still, so that a hung engine can be killed."""

from __future__ import annotations

#: An engine gets more jobs if its loop has moved within this time.
_MOVING_WITHIN_S = 10.0
#: Longest part of the time between two observations that counts.
_LONGEST_OBSERVED_S = 1.0


class StallDetector:
    """Compares successive values of the liveness counter. One thread observes, any may read."""

    def __init__(self, now: float) -> None:
        """Begin at a moment, seconds of `time.monotonic()`."""
        self._loop_count = 0
        self._observed_at = now
        self._stalled_s = 0.0

    @property
    def stalled_s(self) -> float:
        """Seconds for which the loop has stood still, at the last observation."""
        return self._stalled_s

    @property
    def is_moving(self) -> bool:
        """Whether the loop has moved lately: a stuck engine gets no more jobs."""
        return self._stalled_s < _MOVING_WITHIN_S

    def observe(self, now: float, loop_count: int, *, is_ready: bool) -> float:
        """Return for how many seconds the loop of a ready engine has stood still.

        Call this at short intervals. A long interval counts only in part: if both processes were
        frozen together, the engine has not been stuck.

        Args:
            now: seconds of `time.monotonic()`.
            loop_count: iterations of the engine's loop so far.
            is_ready: whether the engine takes requests; one that is loading does not move.
        """
        if loop_count != self._loop_count or not is_ready:
            self._stalled_s = 0.0
        else:
            self._stalled_s += min(now - self._observed_at, _LONGEST_OBSERVED_S)
        self._loop_count, self._observed_at = loop_count, now
        return self._stalled_s
