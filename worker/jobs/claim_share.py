"""Bounds how many jobs a slow worker holds near the end of a queue, by the measured speeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

from batchmill.producer.protocol import reads
from batchmill.producer.protocol.records import WorkerInfo
from batchmill.producer.store.job_store import JobStore
from batchmill.worker.metrics.autoscaling import SPEED_STAT
from batchmill.worker.settings import WorkerSettings

from .active_jobs import ActiveJobs
from .throughput import BusySpeed

#: Seconds between two looks.
LOOK_INTERVAL_S = 1.0
#: With more workers, none reads the heartbeats of all: the readings grow with their square, and one
#: slow worker among so many holds few jobs.
_MAX_WORKERS: Final = 200


def share_of(num_jobs: int, speed: float, others: Sequence[WorkerInfo]) -> int:
    """Return how many of the jobs of a model a worker should hold; at least 1.

    Args:
        num_jobs: that wait or are held by any worker.
        speed: of the worker, tokens per second.
        others: the other workers of the model. One without a measured speed counts as equally fast.
    """
    total = speed + sum(_stat(other, SPEED_STAT) or speed for other in others)
    return max(1, math.ceil(num_jobs * speed / total))


class ClaimShare:
    """The most jobs that this worker may hold, so that all workers are done at the same time.

    While far more jobs wait than the workers have places for, the share exceeds the places and
    bounds nothing. Near the end, a slow worker leaves jobs to faster ones: with as many as it has
    places, it would hold up the end of the whole load. Jobs must not wait for long beside free
    places, though: for each look that finds as many waiting as the one before, the share grows by
    one.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        store: JobStore,
        jobs: ActiveJobs,
        speed: BusySpeed,
        *,
        name: str,
        on_room: Callable[[], None],
    ) -> None:
        """Bind to the parts around it.

        Args:
            settings: of the worker.
            store: holds queues and heartbeats.
            jobs: the active jobs.
            speed: of the engine with full batches.
            name: of the worker.
            on_room: wakes the event loop.
        """
        self._settings = settings
        self._store = store
        self._jobs = jobs
        self._speed = speed
        self._name = name
        self._on_room = on_room
        self._num_waiting = 0
        self._num_extra = 0
        self._limit: int | None = None

    def has_reached(self, num_jobs: int) -> bool:
        """Return whether a worker with so many jobs should leave the next one to others."""
        limit = self._limit
        return limit is not None and num_jobs >= limit

    def look(self) -> None:
        """Compute the share again.

        Raises:
            redis.exceptions.RedisError: Redis did not reply; the next call makes up for it.
        """
        before = self._limit
        self._limit = self._compute() if self._settings.claim_share else None
        if before is not None and (self._limit is None or self._limit > before):
            self._on_room()

    def _compute(self) -> int | None:
        speed = self._speed.tokens_per_s
        depths = self._store.read(reads.queue_depths(self._settings.queues))
        num_waiting = sum(depth.queued for depth in depths)
        is_stuck = 0 < self._num_waiting <= num_waiting
        self._num_waiting = num_waiting
        self._num_extra = self._num_extra + 1 if is_stuck else 0
        if not speed or not num_waiting:
            return None
        workers = [
            worker
            for worker in self._store.list_workers()
            if worker.model == self._settings.served_name and worker.state == "ready"
        ]
        others = [worker for worker in workers if worker.name != self._name]
        if not others or len(others) >= _MAX_WORKERS:
            return None
        held = len(self._jobs) + sum(int(_stat(other, "jobs")) for other in others)
        return share_of(num_waiting + held, speed, others) + self._num_extra


def _stat(worker: WorkerInfo, name: str) -> float:
    value = worker.stats.get(name)
    return float(value) if isinstance(value, int | float) else 0.0
