"""What `batchmill top` shows at one moment, as values and tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from batchmill.worker.terminal import format_duration

from .batch_progress import BatchProgress, BatchProgressReader
from .store_status import TableParts, kv_use

if TYPE_CHECKING:
    from batchmill.producer import Client
    from batchmill.producer.protocol.records import WorkerInfo
    from batchmill.producer.store.every_shard import EveryShard
    from batchmill.producer.store.job_store import JobStore
    from batchmill.worker.metrics.autoscaling import ModelFigures
    from batchmill.worker.metrics.fleet import Fleet, FleetReader

#: The newest batches, among which those that have not ended are looked for.
_NEWEST: Final = 100
#: Batches that are shown; the headline says how many more there are.
_SHOWN: Final = 8


@dataclass(frozen=True, slots=True)
class TopView:
    """Everything at one moment."""

    fleet: Fleet
    batches: Sequence[BatchProgress]
    #: Unfinished batches that are not shown.
    num_more_batches: int
    #: What to say of shards that did not reply.
    problems: Sequence[str]

    def headline(self) -> str:
        """Return the totals in one line."""
        counts, models = self.fleet.counts, self.fleet.models
        more = f", {self.num_more_batches} more batches" if self.num_more_batches else ""
        return (
            f"{counts.queued} waiting, {counts.in_progress} in progress, "
            f"{counts.totals.get('completed', 0)} completed, "
            f"{counts.totals.get('failed', 0)} failed, "
            f"{sum(model.tokens_per_s for model in models):.1f} tok/s, "
            f"{counts.outbox} webhooks waiting, {counts.dead_letters} dead letters{more}"
        )

    def tables(self) -> Iterator[TableParts]:
        """Yield the tables that have rows."""
        yield "\nModels", _MODEL_COLUMNS, [_model_row(each) for each in self.fleet.models]
        yield "\nQueues", _QUEUE_COLUMNS, list(self._queue_rows())
        yield "\nWorkers", _WORKER_COLUMNS, [_worker_row(each) for each in self.fleet.workers]
        if self.batches:
            yield "\nBatches", _BATCH_COLUMNS, [_batch_row(each) for each in self.batches]

    def as_json(self) -> dict[str, Any]:
        """Return everything, for scripts."""
        fleet = self.fleet
        return {
            "counts": asdict(fleet.counts),
            "models": [asdict(each) for each in fleet.models],
            "queues": [
                asdict(each)
                | {"served": each.queue in fleet.served, "paused": each.queue in fleet.paused}
                for each in fleet.queues
            ],
            "workers": [asdict(each) | {"kv_use": kv_use(each)} for each in fleet.workers],
            "batches": [each.model_dump(mode="json") for each in self.batches],
            "more_batches": self.num_more_batches,
        }

    def _queue_rows(self) -> Iterator[Sequence[object]]:
        for each in self.fleet.queues:
            age = "-" if each.oldest_age_s is None else format_duration(each.oldest_age_s)
            served = "yes" if each.queue in self.fleet.served else "by no worker"
            state = "paused" if each.queue in self.fleet.paused else served
            yield each.queue, each.jobs, f"{each.tokens:,}", each.delayed_jobs, age, state


class TopReader:
    """Reads again and again; the speed of workers and the places in batches are kept in between.

    Every call may raise `redis.exceptions.RedisError` or `BrokerUnavailable`.
    """

    def __init__(self, client: Client) -> None:
        """Take a client of the shards that are read, or of the one broker."""
        self._client = client
        self._fleets: dict[JobStore, FleetReader] = {}
        self._batches: dict[str, BatchProgressReader] = {}

    def read(self, shards: EveryShard) -> TopView:
        """Read everything from all shards that reply.

        Raises:
            redis.exceptions.RedisError: no shard replied.
        """
        from batchmill.producer.errors import UnknownBatch
        from batchmill.worker.metrics.fleet import joined_fleet

        parts = shards.each_long(self._read_one)
        if not parts:
            shards.check()
        fleet = joined_fleet([part for part, _ in parts])
        places = {batch_id: store for _, some in parts for batch_id, store in some.items()}
        ids = list(places)
        self._batches = {
            batch_id: self._batches.get(batch_id)
            or BatchProgressReader(self._client, places[batch_id], batch_id)
            for batch_id in ids[:_SHOWN]
        }
        shown = []
        for reader in self._batches.values():
            try:
                shown.append(reader.read())
            except UnknownBatch:  # forgotten since
                continue
        return TopView(fleet, shown, max(0, len(ids) - _SHOWN), shards.describe_missing())

    def _read_one(self, store: JobStore) -> tuple[Fleet, dict[str, JobStore]]:
        """Return what a shard holds, and its unfinished batches."""
        from batchmill.producer.store.batches import batches, newest_batch_ids
        from batchmill.worker.metrics.fleet import FleetReader
        from batchmill.worker.metrics.settings import QueueMetricsSettings

        if store not in self._fleets:
            target_s = QueueMetricsSettings().backlog_target_s
            self._fleets[store] = FleetReader(store, target_s=target_s)
        found = store.read(batches(store.read(newest_batch_ids(_NEWEST))))
        unfinished = [b.id for b in found if b is not None and not b.status.is_terminal]
        return self._fleets[store].read(), dict.fromkeys(unfinished, store)


_MODEL_COLUMNS = (
    *("model", "waiting", "tokens", "backlog", "running", "tok/s", "capacity", "workers"),
    "wanted",
)
_QUEUE_COLUMNS = ("queue", "waiting", "tokens", "delayed", "oldest", "served")
_WORKER_COLUMNS = ("worker", "model", "state", "jobs", "running", "waiting", "tok/s", "KV cache")
_BATCH_COLUMNS = ("batch", "state", "done", "failed", "tok/s", "ETA")


def _model_row(figures: ModelFigures) -> Sequence[object]:
    backlog, capacity = figures.backlog_s, figures.capacity_tokens_per_s
    states = [f"{number} {state}" for state, number in figures.workers.items() if number]
    return (
        figures.model,
        figures.queued_jobs,
        f"{figures.queued_tokens:,}",
        "unknown" if backlog is None else format_duration(backlog),
        figures.running_jobs,
        f"{figures.tokens_per_s:.1f}",
        "-" if capacity is None else f"{capacity:.1f}",
        ", ".join(states) or "0",
        figures.workers_wanted,
    )


def _worker_row(worker: WorkerInfo) -> Sequence[object]:
    share = kv_use(worker)
    gauges = [_stat(worker, name) for name in ("jobs", "running", "waiting", "tokens_per_s")]
    used = "-" if share is None else f"{100 * share:.0f} %"
    return worker.name, worker.model, worker.state, *gauges, used


def _stat(worker: WorkerInfo, name: str) -> str:
    value = worker.stats.get(name)
    return f"{value:g}" if isinstance(value, int | float) else "-"


def _batch_row(progress: BatchProgress) -> Sequence[object]:
    counts, jobs = progress.status.request_counts, progress.jobs
    eta = "unknown" if progress.eta_s is None else format_duration(progress.eta_s)
    speed = "-" if jobs is None else f"{jobs.tokens_per_s:.1f}"
    done = f"{counts.completed + counts.failed} of {counts.total}"
    return progress.status.id, progress.status.status.value, done, counts.failed, speed, eta
