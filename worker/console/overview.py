"""The first page: the load now and over the last hours; for a tenant, its own jobs and usage."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from batchmill.producer.client.job_pages import page_of_jobs
from batchmill.producer.store.job_store import JobStore
from batchmill.producer.store.load_history import INTERVAL_MS, LoadSample, load_history
from batchmill.producer.store.tenants import joined_tenant, load_tenant
from batchmill.producer.store.usage_sums import UsageSum, grouped, usage_sums

from . import formats
from .charts import Chart, Line, draw, gauges, rates
from .fleet import Fleet, share
from .joined_history import joined_history
from .visit import Page, Reply, Visit

#: Periods of the charts, minutes, by their names in the URL.
PERIODS: Final = {"10m": 10, "1h": 60, "6h": 360}
_DEFAULT_PERIOD = "10m"
_RECENT_JOBS = 8
_USAGE_DAYS = 14
#: Samples over which the speed of now is counted.
_SPEED_SAMPLES = 4


def show_overview(visit: Visit) -> Reply:
    """Show the load of everything, or what a tenant has."""
    if visit.viewer.tenant is not None:
        return _tenant_overview(visit, visit.viewer.tenant)
    name = visit.query.get("period", _DEFAULT_PERIOD)
    name = name if name in PERIODS else _DEFAULT_PERIOD
    period_ms = PERIODS[name] * 60_000
    fleet = Fleet.of_all(visit.shards)
    read = load_history(period_ms // INTERVAL_MS + 1)
    history = joined_history(visit.shards.each(lambda store: store.read(read)))
    now_ms = time.time() * 1000
    if history:  # the newest sample is by Redis' clock
        now_ms = max(now_ms, history[-1].at_ms)
    samples = [sample for sample in history if sample.at_ms >= now_ms - period_ms]
    recent = page_of_jobs(visit.shards, limit=_RECENT_JOBS)
    values = {
        "fleet": fleet,
        "now": fleet.sample(),
        "jobs_per_s": _recent_rate(samples),
        "charts": _charts(samples, now_ms - period_ms, now_ms),
        "period": name,
        "periods": list(PERIODS),
        "jobs": recent.jobs,
        "unserved": _unserved(fleet),
    }
    return Page("overview.html", values)


def _unserved(fleet: Fleet) -> list[tuple[str, int]]:
    """Return the queues with jobs that no worker serves."""
    served, waiting = fleet.served_queues, [each for each in fleet.queues if each.queued]
    return [(each.queue, each.queued) for each in waiting if each.queue not in served]


def _recent_rate(samples: Sequence[LoadSample]) -> float | None:
    """Return the jobs that ended per second in the last minute."""
    recent = samples[-_SPEED_SAMPLES - 1 :]
    known = [value for _, value in rates(recent, lambda sample: sample.ended) if value is not None]
    return sum(known) / len(known) if known else None


def _charts(samples: Sequence[LoadSample], since_ms: float, until_ms: float) -> list[Chart]:
    def chart(title: str, *lines: Line, **options: Any) -> Chart:
        return draw(title, lines, since_ms=since_ms, until_ms=until_ms, **options)

    def gauge(name: str, field: str) -> Line:
        return Line(name, gauges(samples, lambda sample: getattr(sample, field)))

    def rate(name: str, field: str) -> Line:
        return Line(name, rates(samples, lambda sample: getattr(sample, field)))

    def part(name: str, field: str, whole: str) -> Line:
        return Line(name, gauges(samples, lambda sample: share(*_pair(sample, field, whole))))

    seconds = {"label": formats.duration, "least_top": 0.1}
    return [
        chart(
            "Backlog",
            *(gauge("waiting", "queued"), gauge("running", "in_progress")),
            label=formats.compact,
            least_top=4.0,
        ),
        chart(
            "Jobs per second",
            *(rate("submitted", "submitted"), rate("ended", "ended")),
            *(rate("not completed", "unfinished"),),
            label=formats.compact,
        ),
        chart("Tokens per second", gauge("generated", "tokens_per_s"), label=formats.compact),
        chart(
            "Batch and KV cache",
            part("places in use", "running", "places"),
            part("KV blocks in use", "used_blocks", "blocks"),
            label=formats.percent,
            top=1.0,
        ),
        chart(
            "Time to first token",
            *(gauge("median", "ttft_p50_s"), gauge("95th percentile", "ttft_p95_s")),
            **seconds,
        ),
        chart(
            "Time in the queue",
            *(gauge("median", "queue_p50_s"), gauge("95th percentile", "queue_p95_s")),
            *(gauge("oldest waiting", "oldest_s"),),
            **seconds,
        ),
    ]


def _pair(sample: LoadSample, one: str, other: str) -> tuple[float | None, float | None]:
    return getattr(sample, one), getattr(sample, other)


def _tenant_overview(visit: Visit, tenant: str) -> Page:
    shards, key = visit.shards, visit.viewer.key
    today = datetime.now(UTC).date()
    first = today - timedelta(days=_USAGE_DAYS - 1)
    used = shards.each(lambda store: store.read(usage_sums(first, today)))
    own = [each for part in used for each in part if each.tenant == tenant]
    served = {each.model for part in shards.each(JobStore.list_workers) for each in part}
    days = {str(each.day): each for each in grouped(own, ["day"])}
    names = [(first + timedelta(days=number)).isoformat() for number in range(_USAGE_DAYS)]
    values = {
        "tenant": joined_tenant(shards.each(lambda store: load_tenant(store, tenant)), tenant),
        "days": [(name, _tokens(days.get(name))) for name in names],
        "jobs": page_of_jobs(shards, limit=_RECENT_JOBS, tenant=tenant).jobs,
        "running": page_of_jobs(
            shards, limit=_RECENT_JOBS, tenant=tenant, state="in_progress"
        ).jobs,
        "models": sorted(filter(key.may_use_model, served)),
    }
    return Page("tenant_overview.html", values)


def _tokens(used: UsageSum | None) -> int:
    return 0 if used is None else used.amounts.prompt_tokens + used.amounts.completion_tokens
