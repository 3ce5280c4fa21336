"""The threads that tell Celery how jobs ended."""

from __future__ import annotations

import queue
import threading
import time

import structlog

from .delivery import Delivery, Outcome

_log = structlog.stdlib.get_logger("batchmill.finishers")


class Finishers:
    """A few threads that run the second phase of deliveries.

    Owns the count of deliveries that Celery considers running: accepted and not finished.
    """

    def __init__(self, num_threads: int) -> None:
        self._queue: queue.SimpleQueue[tuple[Delivery, Outcome] | None] = queue.SimpleQueue()
        self._idle = threading.Condition()
        self._num_open = 0
        self._threads = [
            threading.Thread(target=self._run, name=f"finisher-{number}", daemon=True)
            for number in range(num_threads)
        ]

    @property
    def num_open(self) -> int:
        """Deliveries accepted and not finished."""
        return self._num_open

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def accept(self, delivery: Delivery) -> None:
        """Tell Celery that a delivery has started, and expect its end."""
        with self._idle:
            self._num_open += 1
        delivery.accept()

    def finish(self, delivery: Delivery, outcome: Outcome) -> None:
        """Have the end of an accepted delivery told."""
        self._queue.put((delivery, outcome))

    def wait_idle(self, timeout_s: float) -> bool:
        """Wait until every accepted delivery is finished; False where time ran out."""
        with self._idle:
            return self._idle.wait_for(lambda: self._num_open == 0, timeout_s)

    def close(self, timeout_s: float) -> None:
        """End the threads after what is queued."""
        deadline = time.monotonic() + timeout_s
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            delivery, outcome = item
            try:
                delivery.finish(outcome)
            except Exception:
                # The job's record is written; what failed is Celery's own book-keeping.
                _log.exception("celery_not_told", task_id=delivery.task_id)
            with self._idle:
                self._num_open -= 1
                self._idle.notify_all()
