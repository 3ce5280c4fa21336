"""How long waits last: callers' timeouts, the poll interval and outages of the broker. No I/O."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeAlias

from redis import exceptions as redis_errors

from batchmill.producer.errors import ResultTimeout
from batchmill.producer.plural import pluralize
from batchmill.producer.progress import JobProgress
from batchmill.producer.store.server_version import UnsupportedServer

#: A wake-up can be lost while the connection is cut, so the record is read this often anyway.
POLL_INTERVAL_S = 2.0
#: A broker that is away for this long is an error; a restart is not.
OUTAGE_LIMIT_S = 30.0
_RECONNECT_PAUSE_S = 0.1
#: A wait is explained after this long, and then at this interval.
REPORT_INTERVAL_S = 5.0
_LOG = logging.getLogger("batchmill")

#: Called while a job is waited for, with its progress.
OnWait: TypeAlias = Callable[[JobProgress], None]
# A caller may wait for less time than a reply takes, or not at all.
_LEAST_CALL_S = 1.0

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
            Exception: `error`, if the broker has been away for `OUTAGE_LIMIT_S`, or cannot be used.
        """
        if isinstance(error, UnsupportedServer):
            raise error
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        if now - self._since > OUTAGE_LIMIT_S:
            raise error
        return _RECONNECT_PAUSE_S


class WaitLimit:
    """How long a wait for one job may last, and when it is explained.

    It ends with the caller's timeout, or an outage of the broker.
    """

    def __init__(self, job_id: str, timeout_s: float | None, on_wait: OnWait | None = None) -> None:
        self.job_id = job_id
        self._on_wait = on_wait
        self._report_at: float | None = time.monotonic() + REPORT_INTERVAL_S
        self._timeout_s = timeout_s
        self._deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self._outage = Outage()

    def next_wait_s(self) -> float:
        """Return the seconds to wait until the record is to be read again.

        Raises:
            ResultTimeout: the caller's time is over.
        """
        self._outage.end()
        now = time.monotonic()
        wait_s = POLL_INTERVAL_S
        if self._report_at is not None:
            wait_s = min(wait_s, max(0.01, self._report_at - now))
        if self._deadline is None:
            return wait_s
        if self._deadline <= now:
            raise self._timeout_error()
        return min(wait_s, self._deadline - now)

    def is_report_due(self) -> bool:
        """Return whether the caller is to be told why the wait lasts."""
        return self._report_at is not None and time.monotonic() >= self._report_at

    def put_off_report(self) -> None:
        """Note that the job has made progress that the caller sees."""
        if self._report_at is not None:
            self._report_at = time.monotonic() + REPORT_INTERVAL_S

    def report(self, progress: JobProgress | None) -> None:
        """Tell the caller how far the job is; without a callback, log it once if it cannot run."""
        self.put_off_report()
        if progress is None:
            return
        if self._on_wait is not None:
            self._on_wait(progress)
            return
        self._report_at = None
        if progress.unserved_model is not None:
            _LOG.warning("waiting for a result: %s", progress.describe())

    def call_limit_s(self) -> float | None:
        """Return the seconds that a call to the broker may still take; None sets no limit."""
        return _call_limit_s(self._deadline)

    def pause_s(self, error: Exception) -> float:
        """Return the seconds to wait before connecting again.

        Raises:
            Exception: `error`, if the caller's time is over, or if the broker has been away for
                `OUTAGE_LIMIT_S`.
        """
        if self._deadline is not None and time.monotonic() >= self._deadline:
            raise error
        return self._outage.pause_s(error)

    def _timeout_error(self) -> ResultTimeout:
        return ResultTimeout(
            f"job {self.job_id} has not ended after {self._timeout_s} s; it continues: "
            "wait again, or cancel it",
            job_id=self.job_id,
        )


def _call_limit_s(deadline: float | None) -> float | None:
    return None if deadline is None else max(_LEAST_CALL_S, deadline - time.monotonic())


class TimeBudget:
    """How long a caller waits for several jobs together."""

    def __init__(self, timeout_s: float | None) -> None:
        self._timeout_s = timeout_s
        self._deadline = None if timeout_s is None else time.monotonic() + timeout_s
        self._has_looked = False

    def call_limit_s(self) -> float | None:
        """Return the seconds that a call to the broker may still take; None sets no limit."""
        return _call_limit_s(self._deadline)

    def next_wait_s(self, num_pending: int, last_error: Exception | None = None) -> float:
        """Return the maximum seconds to wait; the first check is always allowed.

        Args:
            num_pending: jobs that have not ended.
            last_error: why the broker could not be reached at the last check; None if it replied.

        Raises:
            ResultTimeout: the time is over.
            Exception: `last_error`, if the time is over.
        """
        if self._deadline is None:
            return POLL_INTERVAL_S
        left_s = self._deadline - time.monotonic()
        if left_s <= 0 and self._has_looked:
            if last_error is not None:
                raise last_error
            raise ResultTimeout(
                f"{pluralize(num_pending, 'job')} did not end within {self._timeout_s} s; nothing "
                "was stopped: wait again, or cancel"
            )
        self._has_looked = True
        return min(POLL_INTERVAL_S, max(0.0, left_s))
