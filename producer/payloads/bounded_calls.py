"""Calls that may block for any time, on a few threads and with a limit of time."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

Outcome = Any | BaseException


class BoundedCalls:
    """Runs calls on daemon threads, a few at a time.

    A call that does not return keeps its place, so a store that hangs can hold no more than the few
    threads. They are daemons: unlike those of an executor, they do not keep a process from ending.
    """

    def __init__(self, num_places: int) -> None:
        """Take the number of calls that may run at once."""
        self._num_places = num_places
        self._places = threading.BoundedSemaphore(num_places)

    def run(self, calls: Sequence[Callable[[], Any]], timeout_s: float) -> list[Outcome]:
        """Run calls and return their values, or the errors that they raised, in order.

        Args:
            calls: the calls.
            timeout_s: seconds that one call may take. Those beyond the number of places wait for
                others, and get as much time again.

        Returns:
            A `TimeoutError` stands for each call that did not return in time.
        """
        rounds = math.ceil(len(calls) / self._num_places)
        deadline = time.monotonic() + timeout_s * max(1, rounds)
        futures = [self._start(call, deadline) for call in calls]
        return [_outcome(future, deadline) for future in futures]

    def _start(self, call: Callable[[], Any], deadline: float) -> Future[Any]:
        future: Future[Any] = Future()
        if not self._places.acquire(timeout=max(0.0, deadline - time.monotonic())):
            future.set_exception(TimeoutError("all threads wait for earlier calls"))
            return future

        def run() -> None:
            try:
                future.set_result(call())
            except BaseException as error:
                future.set_exception(error)
            finally:
                self._places.release()

        threading.Thread(target=run, name="payloads", daemon=True).start()
        return future


def _outcome(future: Future[Any], deadline: float) -> Outcome:
    try:
        return future.result(timeout=max(0.0, deadline - time.monotonic()))
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        return error
