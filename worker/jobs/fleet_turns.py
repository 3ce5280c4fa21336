"""Duties that any worker does for the whole fleet: with many workers, each does them less often.

A duty is to be done at an interval, whoever does it: sweeps, delayed jobs, lost workers. If every
worker did it at that interval, a Redis would be busy with a few hundred idle workers. So beyond
`FULL_PACE` workers, each waits longer in proportion to their number, which it reads now and then.
All of them together then do the duty as often as `FULL_PACE` workers.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from typing import Final

#: Workers that each do a duty at its interval; more of them share it.
FULL_PACE: Final = 4
#: Seconds for which the number of workers is used again: so long may duties wait after most
#: workers have died at once.
_COUNT_S: Final = 10.0
_JITTER: Final = 0.3


class FleetTurns:
    """How many programs share the duties, as far as this worker knows."""

    def __init__(self, count_sessions: Callable[[], int]) -> None:
        """Begin alone.

        Args:
            count_sessions: returns how many workers and deliverers are alive; may raise
                `redis.exceptions.RedisError`.
        """
        self._count_sessions = count_sessions
        self._counted_at: float | None = None
        self._num_sessions = 1

    def turn(self, interval_s: float, most_s: float = math.inf) -> Turn:
        """Return the turns of a duty that a small fleet's workers each do at an interval.

        Args:
            interval_s: in a small fleet, seconds.
            most_s: the longest interval, however many workers there are, seconds.
        """
        return Turn(self, interval_s, most_s)

    def share(self) -> float:
        """Return how many intervals this worker waits between two turns of a duty, at least 1.

        Raises:
            redis.exceptions.RedisError: the number of workers was to be read, and Redis is away.
        """
        now = time.monotonic()
        if self._counted_at is None or now - self._counted_at >= _COUNT_S:
            self._num_sessions = self._count_sessions()
            self._counted_at = now
        return max(1.0, self._num_sessions / FULL_PACE)


class Turn:
    """The turns of one duty in this worker."""

    def __init__(self, turns: FleetTurns, interval_s: float, most_s: float) -> None:
        self._turns = turns
        self._interval_s = interval_s
        self._most_s = most_s
        self._done_at: float | None = None
        self._jitter = 1.0

    def is_due(self) -> bool:
        """Return whether this worker is to do the duty now; if so, its next turn is later.

        Asked at the duty's interval. The first turn comes at once.

        Raises:
            redis.exceptions.RedisError: Redis is away.
        """
        share, now = self._turns.share(), time.monotonic()
        interval_s = min(self._interval_s * share, self._most_s)
        wait_s = (interval_s - self._interval_s) * self._jitter
        if self._done_at is not None and now - self._done_at < wait_s:
            return False
        self._done_at = now
        self._jitter = random.uniform(1 - _JITTER, 1 + _JITTER)
        return True

    def limited(self, action: Callable[[], None]) -> Callable[[], None]:
        """Return an action that is done only when it is due."""

        def act() -> None:
            if self.is_due():
                action()

        return act
