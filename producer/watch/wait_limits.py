"""How long waits last: callers' timeouts, the poll interval and outages of the broker. No I/O."""

from __future__ import annotations

import time

from redis import exceptions as redis_errors

from batchmill.producer.errors import ResultTimeout
from batchmill.producer.plural import pluralize

#: A wake-up can be lost while the connection is cut, so the record is read this often anyway.
POLL_INTERVAL_S = 2.0
#: A broker that is away for this long is an error; a restart is not.
OUTAGE_LIMIT_S = 30.0
_RECONNECT_PAUSE_S = 0.1

CONNECTION_ERRORS = (redis_errors.ConnectionError, redis_errors.TimeoutError)


class Outage:
    """How long the broker has been away."""

    def __init__(self) -> None:
        self._since: float | None = None

    def end(self) -> None:
        """Note that the broker replied."""
        self._since = None

    def pause_s(self, error: Exception) -> float:
        """Return the seconds to wait before connecting again.

        Raises:
            Exception: `error`, if the broker has been away for `OUTAGE_LIMIT_S`.
        """
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        if now - self._since > OUTAGE_LIMIT_S:
            raise error
        return _RECONNECT_PAUSE_S


class WaitLimit:
    """How long a wait for one job may last: the caller's timeout, and an outage of the broker."""

    def __init__(self, job_id: str, timeout_s: float | None) -> None:
        self._job_id = job_id
        self._timeout_s = timeout_s
        self._deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self._outage = Outage()

    def next_wait_s(self) -> float:
        """Return the seconds to wait until the record is to be read again.

        Raises:
            ResultTimeout: the caller's time is over.
        """
        self._outage.end()
        if self._deadline is None:
            return POLL_INTERVAL_S
        left_s = self._deadline - time.monotonic()
        if left_s <= 0:
            raise self._timeout_error()
        return min(POLL_INTERVAL_S, left_s)

    def pause_s(self, error: Exception) -> float:
        """Return the seconds to wait before connecting again.

        Raises:
            ResultTimeout: the caller's time is over.
            Exception: `error`, if the broker has been away for `OUTAGE_LIMIT_S`.
        """
        if self._deadline is not None and time.monotonic() >= self._deadline:
            raise self._timeout_error() from error
        return self._outage.pause_s(error)

    def _timeout_error(self) -> ResultTimeout:
        return ResultTimeout(
            f"job {self._job_id} has not ended after {self._timeout_s} s; it continues: "
            "wait again, or cancel it"
        )


class TimeBudget:
    """How long a caller waits for several jobs together."""

    def __init__(self, timeout_s: float | None) -> None:
        self._timeout_s = timeout_s
        self._deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self._has_looked = False

    def next_wait_s(self, num_pending: int) -> float:
        """Return the maximum seconds to wait; the first check is always allowed.

        Raises:
            ResultTimeout: the time is over.
        """
        if self._deadline is None:
            return POLL_INTERVAL_S
        left_s = self._deadline - time.monotonic()
        if left_s <= 0 and self._has_looked:
            raise ResultTimeout(
                f"{pluralize(num_pending, 'job')} did not end within {self._timeout_s} s; nothing "
                "was stopped: wait again, or cancel"
            )
        self._has_looked = True
        return min(POLL_INTERVAL_S, max(0.0, left_s))
