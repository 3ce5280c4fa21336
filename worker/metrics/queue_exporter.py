"""The exporter of queue figures: one for all shards, so that sums over all series are true."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import structlog
from redis.exceptions import RedisError

from batchmill.producer.errors import ShardMismatch
from batchmill.producer.protocol.records import DeadLetterKind
from batchmill.producer.protocol.store_counts import StoreCounts
from batchmill.producer.store.every_shard import EveryShard, JobStores
from batchmill.producer.store.job_store import JobStore
from batchmill.producer.store.queue_figures import QueueFigures
from batchmill.producer.store.tenants import TenantUsage, load_tenant

from . import queue_series as names
from .autoscaling import ModelFigures
from .fleet import Fleet, FleetReader, fleet_while_away, joined_fleet
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


@dataclass(frozen=True, slots=True)
class _Part:
    """What one broker holds."""

    fleet: Fleet
    #: Dead letters by kind.
    letter_kinds: Mapping[str, int]
    oldest_event_age_s: float
    #: Bytes in use, and the limit; None without the right to ask.
    memory: tuple[int, int] | None
    #: Waiting jobs of the tenants that get series of their own.
    usage: Mapping[str, TenantUsage]


class QueueExporter:
    """Reads all brokers at each scrape.

    Between two it holds the speed of workers and, of several shards, what each said last: while one
    is away, its totals and the workers that it wants stay as they were. So counters do not fall,
    and no worker is stopped because of an outage.
    """

    def __init__(self, stores: JobStores, *, target_s: float, tenants: Sequence[str] = ()) -> None:
        """Bind to the stores of all shards, or to the one store.

        Args:
            stores: the job stores.
            target_s: seconds in which the workers are to work off what waits.
            tenants: those that get series of their own.
        """
        self._stores = stores
        self._target_s = target_s
        self._tenants = tenants
        self._readers: dict[JobStore, FleetReader] = {}
        self._last: dict[str, Fleet] = {}
        self._missing: tuple[str, ...] = ()

    def read(self) -> list[Reading]:
        """Return all readings; of a broker or shard that does not reply, that it does not."""
        shards = self._stores.look()
        parts: dict[str, _Part] = {}
        try:
            parts = dict(shards.named_long(self._read_one))
            shards.check()
        except (RedisError, ShardMismatch) as error:
            self._note_missing(shards.missing or ("",), error)
        else:
            self._note_missing((), None)
        return [
            *number(names.BROKER_UP, bool(parts)),
            *self._shard_readings(shards, parts),
            *(self._readings(shards, parts) if parts else ()),
        ]

    def _note_missing(self, missing: tuple[str, ...], error: Exception | None) -> None:
        """Log which brokers are away: once per outage, not per scrape."""
        if error is not None and missing != self._missing:
            _log.warning("redis_unavailable", error=type(error).__name__, reason=str(error)[:200])
        self._missing = missing

    def _read_one(self, store: JobStore) -> _Part:
        if store not in self._readers:
            self._readers[store] = FleetReader(store, target_s=self._target_s)
        reader = self._readers[store]
        return _Part(
            fleet=reader.read(),
            letter_kinds=reader.letter_kinds(),
            oldest_event_age_s=reader.oldest_event_age_s(),
            memory=reader.memory(),
            usage={name: load_tenant(store, name).usage for name in self._tenants},
        )

    def _shard_readings(self, shards: EveryShard, parts: Mapping[str, _Part]) -> Iterator[Reading]:
        """Return what is shown per shard; nothing of a single broker."""
        if shards.is_alone:
            return
        self._last |= {name: part.fleet for name, part in parts.items()}
        yield gauge(names.SHARD_UP, *(((name,), float(name in parts)) for name in shards.names))
        yield gauge(
            names.SHARD_WORKERS_WANTED,
            *(
                ((name, each.model), float(each.workers_wanted))
                for name, fleet in self._last.items()
                for each in fleet.models
            ),
        )

    def _readings(self, shards: EveryShard, parts: Mapping[str, _Part]) -> Iterator[Reading]:
        away = [fleet_while_away(last) for name, last in self._last.items() if name not in parts]
        fleet = joined_fleet([*(part.fleet for part in parts.values()), *away])
        yield from _queue_readings(fleet)
        yield from _model_readings(fleet.models)
        yield from _gauge_readings(fleet.counts)
        if len(parts) + len(away) == len(shards.names):  # otherwise each total lacks a part
            yield from _total_readings(fleet.counts.totals)
        kinds = Counter({kind.value: 0 for kind in DeadLetterKind})
        for part in parts.values():
            kinds.update(part.letter_kinds)
        yield gauge(names.DEAD_LETTERS, *(((kind,), float(n)) for kind, n in kinds.items()))
        oldest_s = max(part.oldest_event_age_s for part in parts.values())
        yield from number(names.WEBHOOK_OLDEST, oldest_s)
        yield from _memory_readings([part.memory for part in parts.values()])
        if self._tenants:
            yield from self._tenant_readings([part.usage for part in parts.values()])

    def _tenant_readings(self, parts: Sequence[Mapping[str, TenantUsage]]) -> Iterator[Reading]:
        jobs = {name: sum(part[name].jobs for part in parts) for name in self._tenants}
        tokens = {name: sum(part[name].tokens for part in parts) for name in self._tenants}
        yield gauge(names.TENANT_JOBS, *(((name,), float(n)) for name, n in jobs.items()))
        yield gauge(names.TENANT_TOKENS, *(((name,), float(n)) for name, n in tokens.items()))


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


def _gauge_readings(counts: StoreCounts) -> Iterator[Reading]:
    yield from number(names.INBOX_DOCUMENTS, counts.inbox)
    yield from number(names.WEBHOOKS_WAITING, counts.outbox)


def _total_readings(totals: Mapping[str, int]) -> Iterator[Reading]:
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
    yield gauge(
        names.WEBHOOKS_SETTLED, *(((name,), total(f"webhook_{name}")) for name in _OUTCOMES)
    )


def _memory_readings(parts: Iterable[tuple[int, int] | None]) -> Iterator[Reading]:
    """Show the fullest broker: the largest share of its limit, else the most bytes."""
    found = [part for part in parts if part is not None]
    if not found:
        return
    used, limit = max(found, key=lambda each: (each[0] / each[1] if each[1] else 0.0, each[0]))
    yield from number(names.REDIS_MEMORY, used)
    yield from number(names.REDIS_MEMORY_LIMIT, limit or None)
