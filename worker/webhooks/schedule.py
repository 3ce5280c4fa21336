"""When a failed webhook is tried again."""

from __future__ import annotations

import random
from dataclasses import dataclass

#: Seconds to leave a receiver alone that is overloaded or out of reach (429, 502, 504, a timeout).
BUSY_WAIT_S = 60.0
#: A receiver's Retry-After may stretch a wait to twice its length, or to this where that is more.
_RETRY_AFTER_FLOOR_S = 60.0


@dataclass(frozen=True, slots=True)
class RetrySchedule:
    """The waits before each attempt, the first included, varied by up to `jitter` (a share)."""

    waits_s: tuple[float, ...]
    jitter: float
    #: Shortest wait after an answer that told of overload.
    busy_wait_s: float = BUSY_WAIT_S

    def wait_before_next_s(
        self,
        attempts: int,
        *,
        retry_after_s: float | None,
        rng: random.Random,
        is_busy: bool = False,
    ) -> float | None:
        """Seconds until the next attempt after `attempts` failed ones; None when all are used up.

        Args:
            attempts: attempts made so far, at least 1.
            retry_after_s: the wait that the receiver asked for, if any. It can lengthen the wait,
                within bounds, and never shortens it.
            rng: source of the variation, which never makes a wait shorter than was asked for.
            is_busy: the receiver is overloaded or did not answer in time.
        """
        if attempts >= len(self.waits_s):
            return None
        base = self.waits_s[attempts]
        least = self.busy_wait_s if is_busy else 0.0
        if retry_after_s is not None and retry_after_s > base:
            least = max(least, min(retry_after_s, max(2 * base, _RETRY_AFTER_FLOOR_S)))
        varied = base * rng.uniform(1 - self.jitter, 1 + self.jitter)
        return max(varied, least * rng.uniform(1, 1 + self.jitter))
