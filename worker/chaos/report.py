"""The figures of a run, as JSON and as text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from batchmill.engine.lifecycle.stats import quantile

from .evidence import Evidence, lines_about
from .faults import FaultCounts
from .observed import Observed
from .oracle import Allowances, Broken, Promise
from .plan import Plan
from .resources import ProcessUse
from .timeline import Timeline

#: Broken promises of one kind that are printed one by one.
_MAX_SHOWN = 20


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of the faults to the jobs that did no harm."""

    num_computed: int
    num_recomputed: int
    #: Most recomputed tokens of one job per loss of a worker, engine or lease: of jobs whose
    #: checkpoints could be saved throughout, and of all.
    max_recomputed_per_loss: float
    max_recomputed_per_loss_hindered: float
    #: Jobs with more than one attempt, and with suspicion that was left at their end.
    num_lost_jobs: int
    num_suspects: int
    #: Jobs to which the death of an engine is charged that a fault had killed while they ran alone.
    num_charged_for_faults: int
    #: Attempts of jobs that did not end, by the cause of their end.
    causes: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class ChaosReport:
    """All figures of one run."""

    plan: Plan
    wall_s: float
    faults: FaultCounts
    #: Seconds until jobs went on, by kind of fault.
    recovery_s: Mapping[str, Sequence[float]]
    cost: Cost
    broken: Sequence[Broken]
    uses: Sequence[ProcessUse]
    observed: Observed
    timeline: Timeline
    #: What explains the broken promises; of many of one kind, the first.
    evidence: Sequence[Evidence]

    @property
    def is_kept(self) -> bool:
        """Whether every promise was kept."""
        return not self.broken

    def as_json(self) -> dict[str, Any]:
        """Return the report as JSON."""
        counts = Counter(each.promise for each in self.broken)
        deliveries = self.observed.deliveries
        return {
            "plan": self.plan.digest,
            "seed": self.plan.seed,
            "wall_s": round(self.wall_s, 1),
            "jobs": sum(1 for _ in self.plan.jobs),
            "orders": dict(Counter(order.kind.value for order in self.plan.orders)),
            "ends": _ends(self.observed),
            "ended_during_faults": self._num_ended_during_faults(),
            "promises": {promise.value: counts[promise] for promise in Promise},
            "cost": asdict(self.cost),
            "webhooks": {
                "events": len(deliveries.bodies),
                "posts": deliveries.num_posts.total(),
            },
            "faults": {
                kind: {"times": number, "skipped": self.faults.skipped[kind], **self._times(kind)}
                for kind, number in sorted(self.faults.begun.items())
            },
            "troubles": dict(sorted(self.observed.submitted.troubles.items())),
            "abandoned_workflows": len(self.observed.submitted.abandoned),
            "processes": {
                "most_rss_mib": max((use.rss_bytes for use in self.uses), default=0) >> 20,
                "most_grown_mib": max((_grown(use) for use in self.uses), default=0) >> 20,
                "most_fds": max((use.fds for use in self.uses), default=0),
                "most_grown_fds": max((use.fds - use.first_fds for use in self.uses), default=0),
            },
            "broken": [
                {"promise": each.promise.value, "subject": each.subject, "detail": each.detail}
                for each in self.broken
            ],
            "evidence": list(self.evidence),
        }

    def lines(self) -> list[str]:
        """Return the report as lines for people."""
        data = self.as_json()
        cost = self.cost
        lines = [
            f"plan {data['plan']}: seed {data['seed']}, {data['jobs']} jobs, "
            f"{self.faults.begun.total()} of {len(self.plan.faults)} faults, {data['wall_s']} s",
            "submitted as: " + _listed(data["orders"]),
            "ended as: " + _listed(data["ends"]) + f"; {data['ended_during_faults']} of them "
            "before the last fault was over",
            *(f"{name:>24}: {number}" for name, number in data["promises"].items()),
            f"recomputed tokens: {cost.num_recomputed} of {cost.num_computed}; at most "
            f"{cost.max_recomputed_per_loss:g} per job and loss, "
            f"{cost.max_recomputed_per_loss_hindered:g} if no checkpoint could be saved",
            f"jobs with more than one attempt: {cost.num_lost_jobs}; left with suspicion: "
            f"{cost.num_suspects}; charged with an engine that a fault killed while they ran "
            f"alone: {cost.num_charged_for_faults}",
            f"attempts after which a job went on: {_listed(cost.causes) or 'none'}",
            f"webhooks: {data['webhooks']['events']} events in {data['webhooks']['posts']} POSTs",
            f"workflows of which nothing is known, because their publication failed: "
            f"{data['abandoned_workflows']}",
            "producers had to try again after: " + (_listed(data["troubles"]) or "nothing"),
            "processes: " + _listed(data["processes"]),
            f"{'fault':<20}{'times':>6}{'skipped':>9}{'jobs':>7}{'p50 s':>8}{'p99 s':>8}",
        ]
        lines += [
            f"{kind:<20}{row['times']:>6}{row['skipped']:>9}{row['jobs_watched']:>7}"
            f"{_shown(row['recovery_p50_s']):>8}{_shown(row['recovery_p99_s']):>8}"
            for kind, row in data["faults"].items()
        ]
        for promise in Promise:
            lines += self._lines_of_broken(promise)
        lines.append("every promise was kept" if self.is_kept else "promises were broken")
        return lines

    def _lines_of_broken(self, promise: Promise) -> list[str]:
        broken = [each for each in self.broken if each.promise is promise]
        evidence = {(each["subject"], each.get("detail")): each for each in self.evidence}
        lines = []
        for each in broken[:_MAX_SHOWN]:
            lines.append(f"BROKEN {promise}: {each.subject}: {each.detail}")
            if found := evidence.get((each.subject, each.detail)):
                lines += ["    " + line for line in lines_about(found, self.timeline)]
        if len(broken) > _MAX_SHOWN:
            lines.append(f"… and {len(broken) - _MAX_SHOWN} more {promise}; --json has all")
        return lines

    def _num_ended_during_faults(self) -> int:
        """Return how many jobs ended before the last fault: few, if hardly any worker ran."""
        ends = [each.to_ms or 0 for each in self.timeline.happenings if each.what != "start"]
        last_ms = max(ends, default=0)
        times = [seen.finished_at_ms for seen in self.observed.jobs.values()]
        return sum(0 < at_ms <= last_ms for at_ms in times)

    def _times(self, kind: str) -> dict[str, Any]:
        times = sorted(self.recovery_s.get(kind, ()))
        return {
            "jobs_watched": len(times),
            "recovery_p50_s": quantile(times, 0.5),
            "recovery_p99_s": quantile(times, 0.99),
        }


def cost_of(plan: Plan, observed: Observed, allowances: Allowances) -> Cost:
    """Return what the faults cost the jobs that crash no engine."""
    num_computed = num_recomputed = num_lost = num_suspects = num_charged = 0
    most = most_hindered = 0.0
    causes: Counter[str] = Counter()
    for _, job in plan.jobs:
        seen = observed.jobs.get(job.name)
        if seen is None or job.error_code:
            continue
        again = seen.num_computed - seen.num_distinct
        num_computed += seen.num_computed
        num_recomputed += again
        num_lost += seen.attempts > 1
        causes.update(attempt.cause for attempt in seen.history[:-1] if attempt.cause)
        num_suspects += seen.suspect > 0
        num_charged += 0 < seen.crashes <= allowances.killed_engines.get(seen.job_id, 0)
        per_loss = again / max(1, seen.attempts - 1)
        if seen.job_id in allowances.hindered:
            most_hindered = max(most_hindered, per_loss)
        else:
            most = max(most, per_loss)
    return Cost(
        num_computed,
        num_recomputed,
        most,
        most_hindered,
        num_lost,
        num_suspects,
        num_charged,
        dict(causes.most_common()),
    )


def _ends(observed: Observed) -> dict[str, int]:
    states = (seen.state for seen in observed.jobs.values())
    return dict(Counter(state.value for state in states if state is not None))


def _grown(use: ProcessUse) -> int:
    return use.rss_bytes - use.first_rss_bytes


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{number} {name}" for name, number in counts.items())


def _shown(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds:.2f}"
