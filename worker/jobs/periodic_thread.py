"""A thread that repeats one action at an interval, even after a call that failed."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable

import structlog
from redis.exceptions import RedisError

_log = structlog.stdlib.get_logger("batchmill.periodic_thread")


class PeriodicThread:
    """Calls an action at an interval until it is closed. A call that raises is logged."""

    def __init__(
        self, name: str, action: Callable[[], None], interval_s: float, *, jitter: float = 0.0
    ) -> None:
        """Set up a thread without starting it.

        Args:
            name: of the thread, for logs.
            action: the function to call.
            interval_s: seconds from the end of one call to the start of the next.
            jitter: share of the interval by which each wait varies, so that many workers do not
                act at the same moment.
        """
        self._name = name
        self._action = action
        self._interval_s = interval_s
        self._jitter = jitter
        self._wake = threading.Event()
        self._closed = False
        self._healthy = True
        self._thread = threading.Thread(target=self._repeat, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread; the first call comes at once."""
        self._thread.start()

    def call_now(self) -> None:
        """Make the next call come at once."""
        self._wake.set()

    def close(self, timeout_s: float) -> None:
        """End the thread after the call that is running."""
        self._closed = True
        self._wake.set()
        self._thread.join(timeout_s)

    def _repeat(self) -> None:
        while True:
            self._wake.clear()
            if self._closed:
                return
            try:
                self._action()
                self._healthy = True
            except RedisError as error:
                self._log_outage(error)
            except Exception:
                _log.exception("periodic_failed", thread=self._name)
            self._wake.wait(self._interval_s * random.uniform(1 - self._jitter, 1 + self._jitter))

    def _log_outage(self, error: RedisError) -> None:
        """Log an outage once, not with every call."""
        if self._healthy:
            _log.warning(
                "redis_unavailable",
                thread=self._name,
                error=type(error).__name__,
                reason=str(error)[:200],
            )
        self._healthy = False
