"""The retry schedule: when a failed webhook is sent again."""

from __future__ import annotations

import random
from dataclasses import dataclass

#: Seconds to wait for a receiver that is overloaded or out of reach (429, 502, 504, a timeout).
BUSY_WAIT_S = 60.0
#: A receiver's Retry-After may lengthen a wait to twice its length, or to this if that is more.
_RETRY_AFTER_FLOOR_S = 60.0


@dataclass(frozen=True, slots=True)
class RetrySchedule:
    """The waits before each attempt, the first included, varied by a share of up to `jitter`."""

    waits_s: tuple[float, ...]
    jitter: float
    #: Shortest wait after a response that reports overload.
    busy_wait_s: float = BUSY_WAIT_S

    def wait_before_next_s(
        self,
        attempts: int,
        *,
        retry_after_s: float | None,
        rng: random.Random,
        is_busy: bool = False,
    ) -> float | None:
        """Return the seconds until the next attempt, or None if none is left.

        Args:
            attempts: number of attempts so far, at least 1.
            retry_after_s: the wait that the receiver asked for, if any. It can lengthen the wait,
                within bounds, and never shortens it.
            rng: source of the variation. A wait is never shorter than the receiver asked for.
            is_busy: the receiver is overloaded or did not respond in time.
        """
        if attempts >= len(self.waits_s):
            return None
        base = self.waits_s[attempts]
        least = self.busy_wait_s if is_busy else 0.0
        if retry_after_s is not None and retry_after_s > base:
            least = max(least, min(retry_after_s, max(2 * base, _RETRY_AFTER_FLOOR_S)))
        varied = base * rng.uniform(1 - self.jitter, 1 + self.jitter)
        return max(varied, least * rng.uniform(1, 1 + self.jitter))
