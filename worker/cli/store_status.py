"""`StoreStatus`: the queues, workers and counts of all brokers, as values, tables and lines."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from batchmill.worker.terminal import format_duration, format_time_ms

from .media_shortage import models_without_decoders
from .pauses import pause_table

if TYPE_CHECKING:
    from batchmill.producer.protocol.pauses import Pause
    from batchmill.producer.protocol.records import WorkerInfo
    from batchmill.producer.protocol.store_counts import QueueDepth, StoreCounts
    from batchmill.producer.store.every_shard import EveryShard
    from batchmill.producer.store.job_store import JobStore
    from batchmill.producer.store.oldest_job import OldestJob
    from batchmill.worker.metrics.autoscaling import ModelFigures

#: Title, columns and rows.
TableParts = tuple[str, Sequence[str], Sequence[Sequence[object]]]


@dataclass(frozen=True, slots=True)
class StoreStatus:
    """What `batchmill status` shows of all brokers at one moment."""

    at_ms: int
    counts: StoreCounts
    queues: Sequence[QueueDepth]
    workers: Sequence[WorkerInfo]
    pauses: Sequence[Pause]
    #: None if no job waits.
    oldest: OldestJob | None
    #: Backlog and wanted workers of each model.
    models: Sequence[ModelFigures]

    @classmethod
    def read(cls, shards: EveryShard) -> StoreStatus:
        """Read the status of all shards that reply, or of the one broker.

        Raises:
            redis.exceptions.RedisError: no shard replied.
        """
        parts = shards.each_long(cls._read_one)
        if not parts:
            shards.check()
        return parts[0] if len(parts) == 1 else _joined(parts)

    @classmethod
    def _read_one(cls, store: JobStore) -> StoreStatus:
        from batchmill.producer.store.oldest_job import oldest_waiting
        from batchmill.producer.store.pauses import Pauses
        from batchmill.producer.store.queue_figures import queue_figures
        from batchmill.worker.metrics.autoscaling import Speeds, model_figures
        from batchmill.worker.metrics.settings import QueueMetricsSettings

        target_s = QueueMetricsSettings().backlog_target_s
        workers = store.list_workers()
        served = {queue for worker in workers for queue in worker.queues}
        return cls(
            at_ms=int(time.time() * 1000),
            counts=store.counts(),
            queues=_with_empty_queues(store.queue_depths(), served),
            workers=workers,
            pauses=Pauses(store).all(),
            oldest=oldest_waiting(store),
            models=model_figures(queue_figures(store), workers, Speeds(), target_s=target_s),
        )

    @property
    def served(self) -> set[str]:
        """The queues that a worker serves."""
        return {queue for worker in self.workers for queue in worker.queues}

    @property
    def without_decoders(self) -> list[str]:
        """Models whose jobs may have pictures or sounds that none of their workers can decode."""
        return models_without_decoders(self.workers)

    @property
    def tokens_per_s(self) -> float:
        """Tokens that all workers together generated per second, lately."""
        return sum(_number(worker, "tokens_per_s") or 0.0 for worker in self.workers)

    def as_json(self) -> dict[str, Any]:
        """Return everything, for scripts."""
        served = self.served
        return {
            "at_ms": self.at_ms,
            "tokens_per_s": round(self.tokens_per_s, 1),
            "oldest_waiting": None if self.oldest is None else asdict(self.oldest),
            "counts": asdict(self.counts),
            "queues": [asdict(depth) | {"served": depth.queue in served} for depth in self.queues],
            "workers": [asdict(worker) | {"kv_use": kv_use(worker)} for worker in self.workers],
            "models": [asdict(each) for each in self.models],
            "models_without_decoders": self.without_decoders,
            "pauses": [asdict(pause) for pause in self.pauses],
        }

    def tables(self) -> Iterator[TableParts]:
        """Yield the tables of jobs, queues, pauses and workers."""
        yield "Jobs", ("", "number"), self._job_rows()
        served = self.served
        queue_rows = [
            (d.queue, d.queued, d.announcements, "yes" if d.queue in served else "by no worker")
            for d in self.queues
        ]
        yield "\nQueues", ("queue", "waiting", "announced", "served"), queue_rows
        if self.pauses:
            yield "\nPaused", *pause_table(self.pauses)
        yield "\nWorkers", *_worker_columns(self.workers)

    def lines(self) -> Iterator[str]:
        """Yield a line of the jobs and one per worker, for a pipe or a log."""
        counts, totals = self.counts, self.counts.totals
        oldest = "" if self.oldest is None else f" (oldest {format_duration(self.oldest.age_s)})"
        yield (
            f"{format_time_ms(self.at_ms)}: {counts.queued} waiting{oldest}, "
            f"{counts.in_progress} in progress, {totals.get('completed', 0)} completed, "
            f"{totals.get('failed', 0)} failed, {self.tokens_per_s:.1f} tok/s"
        )
        for worker in self.workers:
            yield (
                f"  {worker.name}: {worker.state}, {_speed(worker)} tok/s, "
                f"{_shown(worker, 'running')} running, {_shown(worker, 'waiting')} waiting, "
                f"KV cache {_kv_use(worker)}"
            )
        for depth in self.queues:
            if depth.queued and depth.queue not in self.served:
                yield f"  {depth.queue}: {depth.queued} waiting, served by no worker"

    def _job_rows(self) -> list[tuple[str, object]]:
        counts, oldest = self.counts, self.oldest
        age = "-"
        if oldest is not None:
            age = f"{format_duration(oldest.age_s)}, {oldest.id} in {oldest.queue}"
        return [
            ("in the inbox", counts.inbox),
            ("waiting", counts.queued),
            ("of these, delayed", counts.scheduled),
            ("oldest waiting", age),
            ("in progress", counts.in_progress),
            ("tokens/s", f"{self.tokens_per_s:.1f}"),
            ("webhooks waiting", counts.outbox),
            ("dead letters", counts.dead_letters),
            *((f"total {name}", number) for name, number in sorted(counts.totals.items())),
        ]


def _joined(parts: Sequence[StoreStatus]) -> StoreStatus:
    from batchmill.producer.protocol.pauses import joined_pauses
    from batchmill.worker.metrics.joined_fleet import joined_counts, joined_depths, joined_models

    oldest = [part.oldest for part in parts if part.oldest is not None]
    return StoreStatus(
        at_ms=max(part.at_ms for part in parts),
        counts=joined_counts([part.counts for part in parts]),
        queues=joined_depths(part.queues for part in parts),
        workers=[worker for part in parts for worker in part.workers],
        pauses=joined_pauses(part.pauses for part in parts),
        oldest=max(oldest, key=lambda job: job.age_s, default=None),
        models=joined_models(part.models for part in parts),
    )


def kv_use(worker: WorkerInfo) -> float | None:
    """Return the share of a worker's KV cache that requests hold; None while it has no cache."""
    blocks, free_blocks = _number(worker, "blocks"), _number(worker, "free_blocks")
    if not blocks or free_blocks is None:
        return None
    return round(1 - free_blocks / blocks, 4)


def _with_empty_queues(depths: Sequence[QueueDepth], served: set[str]) -> list[QueueDepth]:
    """Add the queues that workers serve and that hold no job: the store does not list those."""
    from batchmill.producer.protocol.store_counts import QueueDepth

    empty = served - {depth.queue for depth in depths}
    listed = [*depths, *(QueueDepth(queue, 0, 0) for queue in empty)]
    return sorted(listed, key=lambda depth: depth.queue)


def _worker_columns(
    workers: Sequence[WorkerInfo],
) -> tuple[Sequence[str], Sequence[Sequence[object]]]:
    columns = ["worker", "model", "state", "since", "in flight", "tok/s", "KV cache"]
    rows: list[list[object]] = [
        [
            *(w.name, w.model, w.state, format_time_ms(w.started_at_ms), _shown(w, "jobs")),
            *(_speed(w), _kv_use(w)),
        ]
        for w in workers
    ]
    optional = (
        ("dtype", _dtype),
        ("draft tokens", _drafts),
        ("media", lambda worker: ", ".join(worker.media or ())),
        ("lacks", lambda worker: ", ".join(worker.lacks)),
    )
    for name, cell_of in optional:
        cells = [cell_of(worker) for worker in workers]
        if any(cells):  # the stub has no dtype, and there may be no draft tokens
            columns.append(name)
            rows = [[*row, cell or "-"] for row, cell in zip(rows, cells, strict=True)]
    return columns, rows


def _number(worker: WorkerInfo, name: str) -> float | None:
    """Return a gauge of a heartbeat; None if it is missing, or anything but a number."""
    value = worker.stats.get(name)
    return value if isinstance(value, int | float) else None


def _shown(worker: WorkerInfo, name: str) -> str:
    value = _number(worker, name)
    return "-" if value is None else f"{value:g}"


def _speed(worker: WorkerInfo) -> str:
    value = _number(worker, "tokens_per_s")
    return "-" if value is None else f"{value:.1f}"


def _kv_use(worker: WorkerInfo) -> str:
    share = kv_use(worker)
    return "-" if share is None else f"{share:.0%}".replace("%", " %")


def _dtype(worker: WorkerInfo) -> str | None:
    """Return the number format that the worker's engine computes in; None while it is unknown."""
    dtype = worker.stats.get("dtype")
    return str(dtype) if dtype else None


def _drafts(worker: WorkerInfo) -> str | None:
    """Return the draft tokens since the engine process started; None without any."""
    num_drafts = worker.stats.get("draft_tokens")
    num_accepted = worker.stats.get("accepted_tokens")
    if not isinstance(num_drafts, int) or not isinstance(num_accepted, int):
        return None
    if num_drafts == 0:
        return "drafts 0"
    return f"drafts {num_drafts:,}, accepted {num_accepted / num_drafts:.0%}".replace("%", " %")
