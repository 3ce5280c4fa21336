"""The finisher threads, which report to Celery how jobs ended."""

from __future__ import annotations

import queue
import threading
import time

import structlog

from .outcome import Outcome, TaskHandle

_log = structlog.stdlib.get_logger("batchmill.outcome_reporter")


class OutcomeReporter:
    """A few threads that report outcomes: the second phase of the pool.

    Owns the count of tasks that Celery considers running: accepted and not finished.
    """

    def __init__(self, num_threads: int) -> None:
        self._queue: queue.SimpleQueue[tuple[TaskHandle, Outcome] | None] = queue.SimpleQueue()
        self._idle = threading.Condition()
        self._num_open = 0
        self._threads = [
            threading.Thread(target=self._report_all, name=f"finisher-{number}", daemon=True)
            for number in range(num_threads)
        ]

    @property
    def num_open(self) -> int:
        """Tasks that are accepted and not finished."""
        return self._num_open

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def accept(self, task: TaskHandle) -> None:
        """Report to Celery that a task has started; its outcome must follow."""
        with self._idle:
            self._num_open += 1
        task.accept()

    def report(self, task: TaskHandle, outcome: Outcome) -> None:
        """Queue the outcome of an accepted task for a finisher thread."""
        self._queue.put((task, outcome))

    def wait_idle(self, timeout_s: float) -> bool:
        """Wait until every accepted task is finished; return False if the time ran out."""
        with self._idle:
            return self._idle.wait_for(lambda: self._num_open == 0, timeout_s)

    def close(self, timeout_s: float) -> None:
        """End the threads once everything queued is reported."""
        deadline = time.monotonic() + timeout_s
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _report_all(self) -> None:
        while (item := self._queue.get()) is not None:
            task, outcome = item
            try:
                task.finish(outcome)
            except Exception:
                # The job's record is written; only Celery's bookkeeping failed.
                _log.exception("outcome_not_reported", task_id=task.task_id)
            with self._idle:
                self._num_open -= 1
                self._idle.notify_all()
