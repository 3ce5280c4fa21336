"""The exporter of queue figures: one for all shards, so that sums over all series are true."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import structlog
from redis.exceptions import RedisError

from batchmill.producer.store.job_store import JobStore
from batchmill.producer.store.queue_figures import QueueFigures
from batchmill.producer.store.tenants import load_tenant

from . import queue_series as names
from .autoscaling import ModelFigures
from .fleet import Fleet, FleetReader
from .series import Reading, Series, gauge, number

_log = structlog.stdlib.get_logger("batchmill.queue_exporter")
_END_STATES = ("completed", "failed", "cancelled", "expired")
_OUTCOMES = ("delivered", "exhausted", "disabled", "refused")
_ATTEMPTS = "attempts_"
#: Causes that are shown before they occur.
_CAUSES = (
    *("drain", "not_started", "moved", "sliced", "engine_death", "engine_stall"),
    *("lease_expired", "worker_lost", "failed"),
)


class QueueExporter:
    """Reads all brokers at each scrape. Holds no figures between two, but the speed of workers."""

    def __init__(
        self, stores: Sequence[JobStore], *, target_s: float, tenants: Sequence[str] = ()
    ) -> None:
        """Bind to the stores of all shards, or to the one store.

        Args:
            stores: the job stores; no other thread may use them.
            target_s: seconds in which the workers are to work off what waits.
            tenants: those that get series of their own.
        """
        self._stores = stores
        self._tenants = tenants
        self._reader = FleetReader(stores, target_s=target_s)
        self._is_reachable = True

    def read(self) -> list[Reading]:
        """Return all readings; if a broker does not reply, only that it does not."""
        try:
            readings = list(self._read())
        except RedisError as error:
            if self._is_reachable:  # logged once per outage, not per scrape
                _log.warning(
                    "redis_unavailable", error=type(error).__name__, reason=str(error)[:200]
                )
            self._is_reachable = False
            return list(number(names.BROKER_UP, 0))
        self._is_reachable = True
        return [*number(names.BROKER_UP, 1), *readings]

    def _read(self) -> Iterator[Reading]:
        fleet = self._reader.read()
        yield from _queue_readings(fleet)
        yield from _model_readings(fleet.models)
        yield from _total_readings(fleet)
        kinds = self._reader.letter_kinds().items()
        yield gauge(names.DEAD_LETTERS, *(((kind,), float(n)) for kind, n in kinds))
        yield from number(names.WEBHOOK_OLDEST, self._reader.oldest_event_age_s())
        memory = self._reader.memory()
        if memory is not None:
            yield from number(names.REDIS_MEMORY, memory[0])
            yield from number(names.REDIS_MEMORY_LIMIT, memory[1] or None)
        if self._tenants:
            yield from self._tenant_readings()

    def _tenant_readings(self) -> Iterator[Reading]:
        usage = {
            name: [load_tenant(store, name).usage for store in self._stores]
            for name in self._tenants
        }
        jobs = {name: float(sum(part.jobs for part in parts)) for name, parts in usage.items()}
        tokens = {name: float(sum(part.tokens for part in parts)) for name, parts in usage.items()}
        yield gauge(names.TENANT_JOBS, *(((name,), value) for name, value in jobs.items()))
        yield gauge(names.TENANT_TOKENS, *(((name,), value) for name, value in tokens.items()))


def _queue_readings(fleet: Fleet) -> Iterator[Reading]:
    columns: dict[Series, Callable[[QueueFigures], float]] = {
        names.QUEUED_JOBS: lambda queue: queue.jobs,
        names.DELAYED_JOBS: lambda queue: queue.delayed_jobs,
        names.QUEUED_TOKENS: lambda queue: queue.tokens,
        names.ANNOUNCED_JOBS: lambda queue: queue.announcements,
        names.OLDEST_QUEUED_AGE: lambda queue: queue.oldest_age_s or 0.0,
        names.QUEUE_SERVED: lambda queue: queue.queue in fleet.served,
        names.QUEUE_PAUSED: lambda queue: queue.queue in fleet.paused,
    }
    for series, value in columns.items():
        rows = (((q.queue, q.model, q.priority), float(value(q))) for q in fleet.queues)
        yield gauge(series, *rows)


def _model_readings(models: Iterable[ModelFigures]) -> Iterator[Reading]:
    columns: dict[Series, Callable[[ModelFigures], float | None]] = {
        names.BACKLOG: lambda figures: figures.backlog_s,
        names.WORKERS_WANTED: lambda figures: figures.workers_wanted,
        names.CAPACITY: lambda figures: figures.capacity_tokens_per_s,
        names.SPEED: lambda figures: figures.tokens_per_s,
        names.RUNNING_JOBS: lambda figures: figures.running_jobs,
    }
    for series, value in columns.items():
        numbers = [(each.model, value(each)) for each in models]
        samples = [((model,), float(found)) for model, found in numbers if found is not None]
        yield gauge(series, *samples)
    yield gauge(
        names.WORKERS,
        *(
            ((each.model, state), float(number_))
            for each in models
            for state, number_ in each.workers.items()
        ),
    )


def _total_readings(fleet: Fleet) -> Iterator[Reading]:
    counts, totals = fleet.counts, fleet.counts.totals

    def total(name: str) -> float:
        return float(totals.get(name, 0))

    yield from number(names.JOBS_SUBMITTED, total("submitted"))
    yield from number(names.JOBS_RETRIED, total("retried"))
    yield gauge(names.JOBS_ENDED, *(((state,), total(state)) for state in _END_STATES))
    causes = {name.removeprefix(_ATTEMPTS) for name in totals if name.startswith(_ATTEMPTS)}
    lost = sorted(causes.union(_CAUSES))
    yield gauge(names.ATTEMPTS_REQUEUED, *(((cause,), total(_ATTEMPTS + cause)) for cause in lost))
    yield from number(names.LEASE_EXPIRATIONS, total("attempts_lease_expired"))
    yield from number(names.DEAD_LETTERS_DROPPED, total("dead_letters_dropped"))
    yield from number(names.INBOX_DOCUMENTS, counts.inbox)
    yield gauge(
        names.WEBHOOKS_SETTLED, *(((name,), total(f"webhook_{name}")) for name in _OUTCOMES)
    )
    yield from number(names.WEBHOOKS_WAITING, counts.outbox)
