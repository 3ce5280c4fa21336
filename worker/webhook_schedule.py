"""When a failed webhook is tried again."""

from __future__ import annotations

import random
from dataclasses import dataclass

#: A receiver's Retry-After may stretch a wait to twice its length, or to this where that is more.
_RETRY_AFTER_FLOOR_S = 60.0


@dataclass(frozen=True, slots=True)
class RetrySchedule:
    """The waits before each attempt, the first included, varied by up to `jitter` (a share)."""

    waits_s: tuple[float, ...]
    jitter: float

    def wait_before_next_s(
        self, attempts: int, *, retry_after_s: float | None, rng: random.Random
    ) -> float | None:
        """Seconds until the next attempt after `attempts` failed ones; None when all are used up.

        Args:
            attempts: attempts made so far, at least 1.
            retry_after_s: the wait that the receiver asked for, if any. It can lengthen the wait,
                within bounds, and never shortens it.
            rng: source of the variation.
        """
        if attempts >= len(self.waits_s):
            return None
        base = self.waits_s[attempts]
        if retry_after_s is not None:
            base = max(base, min(retry_after_s, max(2 * base, _RETRY_AFTER_FLOOR_S)))
        return base * rng.uniform(1 - self.jitter, 1 + self.jitter)
