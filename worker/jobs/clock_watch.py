"""Tells an operator when the clock of Redis is put forward or back."""

from __future__ import annotations

import time
from dataclasses import dataclass

import structlog

_log = structlog.stdlib.get_logger("batchmill.clock_watch")
#: A smaller step changes nothing that a user notices.
MIN_JUMP_S = 1.0


@dataclass(frozen=True, slots=True)
class ClockReading:
    """A time of Redis, and when it was read (`time.monotonic()`): between two moments."""

    redis_s: float
    sent_at: float
    received_at: float


class ClockWatch:
    """Compares the clock of Redis with this machine's monotonic clock. One thread uses it."""

    def __init__(self) -> None:
        self._last: ClockReading | None = None

    def observe(self, redis_ms: int, sent_at: float) -> float:
        """Take a time of Redis that a call has just returned; log a jump and return its size.

        Args:
            redis_ms: the time, milliseconds.
            sent_at: when the call was sent, `time.monotonic()`.

        Returns:
            Seconds by which the clock was put forward since the last call, or back (negative);
            0.0 if the delay of the calls explains the difference.
        """
        reading = ClockReading(redis_ms / 1000, sent_at, time.monotonic())
        last, self._last = self._last, reading
        jump_s = 0.0 if last is None else measure_jump_s(last, reading)
        if jump_s > 0:
            _log.warning(
                "redis_clock_put_forward",
                by_s=round(jump_s, 1),
                effect="leases that ran out are extended once; delays and deadlines end early",
            )
        elif jump_s < 0:
            _log.warning(
                "redis_clock_put_back",
                by_s=round(-jump_s, 1),
                effect="batchmill's time continues, and is slower until this is made up",
            )
        return jump_s


def measure_jump_s(before: ClockReading, after: ClockReading) -> float:
    """Return by how much the clock of Redis jumped between two readings; 0.0 if it did not."""
    passed_s = after.redis_s - before.redis_s
    least_s, most_s = after.sent_at - before.received_at, after.received_at - before.sent_at
    if passed_s > most_s + MIN_JUMP_S:
        return passed_s - most_s
    if passed_s < least_s - MIN_JUMP_S:
        return passed_s - least_s
    return 0.0
