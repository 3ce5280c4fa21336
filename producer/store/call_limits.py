"""Limits the time of a call to the broker: all its connections, attempts and replies together.

redis-py repeats a command, and within each attempt the connection, and within that the handshake,
each on a schedule of its own. Against a server that accepts connections and never replies, the
three multiply. Here only the outermost of them repeats, and all of them share one deadline.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import ExponentialWithJitterBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from .server_version import UnsupportedServer
from .shard_errors import note_shard

Reply = TypeVar("Reply")

#: Seconds that one attempt may still take when the deadline has passed: not 0, because a socket
#: with a timeout of 0 does not wait at all.
_LEAST_TIMEOUT_S = 0.001
_BACKOFF = ExponentialWithJitterBackoff(base=0.05, cap=0.8)

# A value per thread and per asyncio task.
_deadline: ContextVar[float | None] = ContextVar("deadline", default=None)
_is_repeated: ContextVar[bool] = ContextVar("is_repeated", default=False)


@contextmanager
def time_limit(timeout_s: float | None) -> Iterator[None]:
    """Limit everything that is sent to a broker inside to `timeout_s` seconds in all.

    An outer limit that ends earlier stays in force. None adds no limit.
    """
    token = _deadline.set(_deadline_after(timeout_s))
    try:
        yield
    finally:
        _deadline.reset(token)


def _deadline_after(timeout_s: float | None) -> float | None:
    outer = _deadline.get()
    if timeout_s is None:
        return outer
    deadline = time.monotonic() + timeout_s
    return deadline if outer is None else min(outer, deadline)


def limited_timeout(timeout_s: float) -> float:
    """Return a socket's timeout in seconds, cut to the time that is left for the call."""
    deadline = _deadline.get()
    if deadline is None:
        return timeout_s
    return max(_LEAST_TIMEOUT_S, min(timeout_s, deadline - time.monotonic()))


class _Failures:
    """The failed attempts of one call, which decide whether another one follows. No I/O."""

    def __init__(self, num_retries: int, is_retryable: Callable[[Exception], bool] | None) -> None:
        self._num_retries = num_retries
        self._is_retryable = is_retryable
        self.num = 0

    def note(self, error: Exception) -> None:
        """Count a failed attempt.

        Raises:
            Exception: `error`, if it makes no sense to repeat the call.
        """
        if isinstance(error, UnsupportedServer):
            raise error
        if self._is_retryable is not None and not self._is_retryable(error):
            raise error
        self.num += 1

    def pause_s(self, error: Exception) -> float:
        """Return the seconds to wait before the next attempt.

        Raises:
            Exception: `error`, if no attempt is left, or no time for one.
        """
        pause_s = _BACKOFF.compute(self.num)
        deadline = _deadline.get()
        is_late = deadline is not None and time.monotonic() + pause_s >= deadline
        if self.num > self._num_retries or is_late:
            raise error
        return pause_s


@contextmanager
def _call(
    timeout_s: float, num_retries: int, is_retryable: Callable[[Exception], bool] | None
) -> Iterator[_Failures]:
    """Limit a call's time. A call inside another one is not repeated: the outer one is."""
    if _is_repeated.get():
        yield _Failures(0, is_retryable)
        return
    token = _is_repeated.set(True)
    try:
        with time_limit(timeout_s):
            yield _Failures(num_retries, is_retryable)
    finally:
        _is_repeated.reset(token)


class LimitedRetry(Retry):
    """Repeats a failed call a number of times, within a number of seconds in all.

    Its errors name the shard, if the broker is one of several.
    """

    def __init__(self, timeout_s: float, num_retries: int, shard_name: str = "") -> None:
        super().__init__(_BACKOFF, num_retries)
        self.timeout_s = timeout_s
        self.shard_name = shard_name

    def call_with_retry(
        self,
        do: Callable[[], Reply],
        fail: Callable[..., Any],
        is_retryable: Callable[[Exception], bool] | None = None,
        with_failure_count: bool = False,
    ) -> Reply:
        """Return the reply to `do`; call `fail` after each failure.

        Raises:
            Exception: that of the last attempt.
        """
        if _is_repeated.get():  # the outer call is repeated
            return self._attempt(do, fail, _Failures(0, is_retryable), with_failure_count)
        # Without context managers, which took a tenth of a short call's time.
        repeated = _is_repeated.set(True)
        limited = _deadline.set(_deadline_after(self.timeout_s))
        try:
            failures = _Failures(self._retries, is_retryable)
            return self._attempt(do, fail, failures, with_failure_count)
        except RedisError as error:
            note_shard(error, self.shard_name)
            raise
        finally:
            _deadline.reset(limited)
            _is_repeated.reset(repeated)

    def _attempt(
        self,
        do: Callable[[], Reply],
        fail: Callable[..., Any],
        failures: _Failures,
        with_failure_count: bool,
    ) -> Reply:
        while True:
            try:
                return do()
            except self._supported_errors as error:
                failures.note(error)
                fail(error, failures.num) if with_failure_count else fail(error)
                pause_s = failures.pause_s(error)
            time.sleep(pause_s)


class AsyncLimitedRetry(AsyncRetry):
    """The same for asyncio."""

    def __init__(self, timeout_s: float, num_retries: int, shard_name: str = "") -> None:
        super().__init__(_BACKOFF, num_retries)
        self.timeout_s = timeout_s
        self.shard_name = shard_name

    async def call_with_retry(
        self,
        do: Callable[[], Awaitable[Reply]],
        fail: Callable[..., Any],
        is_retryable: Callable[[Exception], bool] | None = None,
        with_failure_count: bool = False,
    ) -> Reply:
        """Return the reply to `do`; call `fail` after each failure.

        Raises:
            Exception: that of the last attempt.
        """
        try:
            with _call(self.timeout_s, self._retries, is_retryable) as failures:
                return await self._attempt(do, fail, failures, with_failure_count)
        except RedisError as error:
            note_shard(error, self.shard_name)
            raise

    async def _attempt(
        self,
        do: Callable[[], Awaitable[Reply]],
        fail: Callable[..., Any],
        failures: _Failures,
        with_failure_count: bool,
    ) -> Reply:
        while True:
            try:
                return await do()
            except self._supported_errors as error:
                failures.note(error)
                await (fail(error, failures.num) if with_failure_count else fail(error))
                pause_s = failures.pause_s(error)
            await asyncio.sleep(pause_s)
