"""`Fleet`: the workers, queues and counts at one moment, and the sample of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from batchmill.producer.protocol.records import WorkerInfo
from batchmill.producer.protocol.replies import JobState
from batchmill.producer.protocol.store_counts import QueueDepth, StoreCounts
from batchmill.producer.store.every_shard import EveryShard
from batchmill.producer.store.job_store import JobStore
from batchmill.producer.store.load_history import LoadSample, is_load
from batchmill.producer.store.oldest_job import OldestJob, oldest_waiting
from batchmill.worker.metrics.joined_fleet import joined_counts, joined_depths

_ENDS = [state for state in JobState if state.is_terminal]


@dataclass(frozen=True, slots=True)
class Load:
    """The load of one worker. A number is None if the worker does not report it."""

    worker: WorkerInfo
    jobs: float | None
    tokens_per_s: float | None
    running: float | None
    waiting: float | None
    places: float
    blocks: float | None
    used_blocks: float | None
    ttft_p50_s: float | None
    ttft_p95_s: float | None

    @classmethod
    def of(cls, worker: WorkerInfo) -> Load:
        """Return the load in a heartbeat."""
        blocks, free = gauge(worker, "blocks") or None, gauge(worker, "free_blocks")
        return cls(
            worker,
            jobs=gauge(worker, "jobs"),
            tokens_per_s=gauge(worker, "tokens_per_s"),
            running=gauge(worker, "running"),
            waiting=gauge(worker, "waiting"),
            places=worker.max_num_seqs,
            blocks=blocks,
            used_blocks=None if blocks is None or free is None else max(0.0, blocks - free),
            ttft_p50_s=gauge(worker, "ttft_p50_s"),
            ttft_p95_s=gauge(worker, "ttft_p95_s"),
        )

    @property
    def kv_use(self) -> float | None:
        """Share of the KV cache in use."""
        return share(self.used_blocks, self.blocks)

    @property
    def occupancy(self) -> float | None:
        """Share of the batch's places in use."""
        return share(self.running, self.places)


@dataclass(frozen=True, slots=True)
class Fleet:
    """All workers, queues and counts."""

    counts: StoreCounts
    queues: Sequence[QueueDepth]
    loads: Sequence[Load]
    #: None if no job waits.
    oldest: OldestJob | None

    @classmethod
    def read(cls, store: JobStore) -> Fleet:
        """Read it.

        Raises:
            redis.exceptions.RedisError: Redis did not reply.
        """
        loads = [Load.of(worker) for worker in store.list_workers()]
        return cls(store.counts(), store.queue_depths(), loads, oldest_waiting(store))

    @classmethod
    def of_all(cls, shards: EveryShard) -> Fleet:
        """Read that of all shards that reply."""
        parts = shards.each(cls.read)
        oldest = [part.oldest for part in parts if part.oldest is not None]
        return cls(
            joined_counts([part.counts for part in parts]),
            joined_depths(part.queues for part in parts),
            [load for part in parts for load in part.loads],
            max(oldest, key=lambda job: job.age_s, default=None),
        )

    @property
    def served_queues(self) -> set[str]:
        """The queues that a worker serves."""
        return {queue for load in self.loads for queue in load.worker.queues}

    @property
    def num_ended(self) -> int:
        """Jobs that have ended since the store was created."""
        return sum(self.counts.totals.get(state.value, 0) for state in _ENDS)

    def sample(self) -> LoadSample:
        """Return the present load."""
        counts, loads = self.counts, self.loads
        completed = counts.totals.get(JobState.COMPLETED.value, 0)
        return LoadSample(
            queued=counts.queued,
            in_progress=counts.in_progress,
            oldest_s=0.0 if self.oldest is None else self.oldest.age_s,
            submitted=counts.totals.get("submitted", 0),
            ended=self.num_ended,
            unfinished=self.num_ended - completed,
            workers=len(loads),
            tokens_per_s=total(load.tokens_per_s for load in loads),
            running=total(load.running for load in loads),
            places=total(load.places for load in loads),
            used_blocks=total(load.used_blocks for load in loads),
            blocks=total(load.blocks for load in loads),
            ttft_p50_s=self._middle("ttft_p50_s"),
            ttft_p95_s=self._worst("ttft_p95_s"),
            queue_p50_s=self._middle("queue_p50_s"),
            queue_p95_s=self._worst("queue_p95_s"),
            outbox=counts.outbox,
            dead_letters=counts.dead_letters,
        )

    def _middle(self, name: str) -> float | None:
        values = self._gauges(name)
        return values[len(values) // 2] if values else None

    def _worst(self, name: str) -> float | None:
        return max(self._gauges(name), default=None)

    def _gauges(self, name: str) -> list[float]:
        found = (gauge(load.worker, name) for load in self.loads)
        return sorted(value for value in found if value is not None)


def gauge(worker: WorkerInfo, name: str) -> float | None:
    """Return a number of a heartbeat; None if it is missing, or not a number of a load."""
    value = worker.stats.get(name)
    return value if is_load(value) else None


def share(part: float | None, whole: float | None) -> float | None:
    """Return a part as a share of the whole; None if one is unknown, or the whole is 0."""
    return None if part is None or not whole else min(1.0, max(0.0, part / whole))


def total(values: Iterable[float | None]) -> float | None:
    """Return the sum of the known values; None without any."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None
