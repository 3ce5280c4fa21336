"""The figures of several shards as those of one system. No I/O."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from batchmill.producer.protocol.store_counts import QueueDepth, StoreCounts
from batchmill.producer.store.queue_figures import QueueFigures

from .autoscaling import ModelFigures


def joined_counts(parts: Sequence[StoreCounts]) -> StoreCounts:
    """Return the sums of all counts."""
    totals: Counter[str] = Counter()
    for part in parts:
        totals.update(part.totals)
    return StoreCounts(
        queued=sum(part.queued for part in parts),
        scheduled=sum(part.scheduled for part in parts),
        in_progress=sum(part.in_progress for part in parts),
        outbox=sum(part.outbox for part in parts),
        dead_letters=sum(part.dead_letters for part in parts),
        inbox=sum(part.inbox for part in parts),
        totals=dict(totals),
    )


def joined_depths(parts: Iterable[Sequence[QueueDepth]]) -> list[QueueDepth]:
    """Return the depths of queues, each once, by name."""
    found: dict[str, QueueDepth] = {}
    for depth in (depth for part in parts for depth in part):
        before = found.get(depth.queue, QueueDepth(depth.queue, 0, 0))
        found[depth.queue] = replace(
            before,
            queued=before.queued + depth.queued,
            announcements=before.announcements + depth.announcements,
        )
    return [found[name] for name in sorted(found)]


def joined_queues(parts: Iterable[Sequence[QueueFigures]]) -> list[QueueFigures]:
    """Return the figures of queues, each once, by name."""
    found: dict[str, QueueFigures] = {}
    for queue in (queue for part in parts for queue in part):
        before = found.get(queue.queue)
        found[queue.queue] = queue if before is None else _both(before, queue)
    return [found[name] for name in sorted(found)]


def joined_models(parts: Iterable[Sequence[ModelFigures]]) -> list[ModelFigures]:
    """Return the figures of models, each once, by name.

    Workers serve one shard each, so the backlog is that of the shard with the longest one, and the
    wanted workers are the sum of what each shard wants.
    """
    found: dict[str, list[ModelFigures]] = {}
    for figures in (figures for part in parts for figures in part):
        found.setdefault(figures.model, []).append(figures)
    return [_model(found[name]) for name in sorted(found)]


def _both(one: QueueFigures, other: QueueFigures) -> QueueFigures:
    ages = [age for age in (one.oldest_age_s, other.oldest_age_s) if age is not None]
    return QueueFigures(
        queue=one.queue,
        jobs=one.jobs + other.jobs,
        delayed_jobs=one.delayed_jobs + other.delayed_jobs,
        tokens=one.tokens + other.tokens,
        announcements=one.announcements + other.announcements,
        oldest_age_s=max(ages, default=None),
    )


def _model(parts: Sequence[ModelFigures]) -> ModelFigures:
    workers: Counter[str] = Counter()
    for part in parts:
        workers.update(part.workers)
    backlogs = [part.backlog_s for part in parts]
    capacities = [
        part.capacity_tokens_per_s for part in parts if part.capacity_tokens_per_s is not None
    ]
    return ModelFigures(
        model=parts[0].model,
        queued_jobs=sum(part.queued_jobs for part in parts),
        queued_tokens=sum(part.queued_tokens for part in parts),
        workers=dict(workers),
        running_jobs=sum(part.running_jobs for part in parts),
        tokens_per_s=sum(part.tokens_per_s for part in parts),
        capacity_tokens_per_s=sum(capacities) if capacities else None,
        backlog_s=None if None in backlogs else max(each or 0.0 for each in backlogs),
        workers_wanted=sum(part.workers_wanted for part in parts),
    )
