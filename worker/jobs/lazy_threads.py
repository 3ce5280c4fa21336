"""A few threads that start when there is something to do."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

import structlog

_log = structlog.stdlib.get_logger("batchmill.lazy_threads")


class LazyThreads:
    """Threads that run actions on jobs, in the order in which they came. Thread-safe.

    They start with the first action, and end with the process. If an action fails, its job's lease
    runs out, and another attempt follows.
    """

    def __init__(self, name: str, num_threads: int, *, failure: str) -> None:
        """Take what they are called, without starting one.

        Args:
            name: of the threads, before their number.
            num_threads: how many actions run at once.
            failure: event of the log if an action fails.
        """
        self._name = name
        self._num_threads = num_threads
        self._failure = failure
        self._queue: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._has_started = False

    def put(self, action: Callable[[], None]) -> None:
        """Run an action as soon as a thread is free; return at once."""
        with self._lock:
            if not self._has_started:
                self._has_started = True
                for number in range(self._num_threads):
                    name = f"{self._name}-{number}"
                    threading.Thread(target=self._run, name=name, daemon=True).start()
        self._queue.put(action)

    def _run(self) -> None:
        while True:
            action = self._queue.get()
            try:
                action()
            except Exception:
                _log.exception(self._failure)
