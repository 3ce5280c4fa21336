"""`StallWatch`: says what a bulk run waits for, if no job of it ends."""

from __future__ import annotations

import contextlib
import sys
import time
from typing import TYPE_CHECKING

from redis import RedisError

if TYPE_CHECKING:
    from batchmill.producer.bulk.options import BulkCounts
    from batchmill.producer.store.shards import Shards

    from .bulk_view import BulkView

#: Seconds without a result after which the queues are checked, again and again.
_STALL_S = 5.0


class StallWatch:
    """Looks for queues of this run that no worker serves. Each is reported once."""

    def __init__(self, shards: Shards, view: BulkView) -> None:
        self._shards = shards
        self._view = view
        self._done = -1
        self._since = time.monotonic()
        self._reported: set[str] = set()

    def observe(self, counts: BulkCounts) -> None:
        """Check the queues if no job has ended for a while."""
        now = time.monotonic()
        if counts.done != self._done:
            self._done, self._since = counts.done, now
            self._view.waits_for = None
        elif now - self._since >= _STALL_S:
            self._since = now
            with contextlib.suppress(RedisError):  # the run itself reports it
                self._check(counts)

    def report_waiting(self, counts: BulkCounts) -> None:
        """Say which models of a run that stops are waited for."""
        with contextlib.suppress(RedisError):
            self._check(counts)
        if self._view.waits_for:
            sys.stderr.write(f"it {self._view.waits_for}\n")

    def _check(self, counts: BulkCounts) -> None:
        from batchmill.producer.progress import unserved as describe
        from batchmill.producer.store.job_progress import served_models

        workers = [each for store in self._shards.every() for each in store.list_workers()]
        served = {queue for worker in workers for queue in worker.queues}
        waiting = {key: number for key, number in counts.waiting.items() if number > 0}
        unserved = {key: number for key, number in waiting.items() if key[0] not in served}
        models = sorted({model for _, model in unserved})
        is_all = bool(waiting) and len(unserved) == len(waiting)
        self._view.waits_for = f"waits for a worker of {', '.join(models)}" if is_all else None
        for (queue, model), number in unserved.items():
            if queue in self._reported:
                continue
            self._reported.add(queue)
            lines = "1 line waits" if number == 1 else f"{number} lines wait"
            self._view.note(
                f"note: {describe(model, served_models(workers))}; {lines} in the queue {queue}. "
                "Start a worker with that model, or stop this command and give it again with "
                "another --model"
            )
