"""Figures of benchmark runs: times of requests, medians of runs, load of other processes."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version

from batchmill.engine.lifecycle.stats import quantile


@dataclass(frozen=True, slots=True)
class RequestTimes:
    """Times of one request in seconds since its submission."""

    #: Time to its first token.
    first_token_s: float | None
    #: Mean time between two tokens; None for a single token.
    inter_token_s: float | None
    #: Time to its end.
    total_s: float | None


@dataclass(frozen=True, slots=True)
class BenchRun:
    """One run of a workload."""

    wall_s: float
    num_output_tokens: int
    #: Mean number of CPUs that other processes used meanwhile; None if it cannot be read.
    foreign_cpus: float | None
    requests: Sequence[RequestTimes] = field(default=(), repr=False)
    #: Number of requests that ended with an error, by its code.
    failures: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class BenchRow:
    """Several runs of a workload: medians, and the range of the wall time."""

    workload: str
    num_requests: int
    num_prompt_tokens: int
    num_output_tokens: int
    wall_s: float
    wall_min_s: float
    wall_max_s: float
    output_tokens_per_s: float
    requests_per_s: float
    first_token_p50_s: float | None
    first_token_p99_s: float | None
    inter_token_p50_s: float | None
    inter_token_p99_s: float | None
    total_p50_s: float | None
    total_p99_s: float | None
    foreign_cpus: float | None
    failures: dict[str, int]


def summarise(
    workload: str, num_requests: int, num_prompt_tokens: int, runs: Sequence[BenchRun]
) -> BenchRow:
    """Return the medians of the runs. Percentiles are over the requests of all runs."""
    wall_s = statistics.median(run.wall_s for run in runs)
    num_output_tokens = runs[0].num_output_tokens
    times = [request for run in runs for request in run.requests]
    first = sorted(x.first_token_s for x in times if x.first_token_s is not None)
    inter = sorted(x.inter_token_s for x in times if x.inter_token_s is not None)
    total = sorted(x.total_s for x in times if x.total_s is not None)
    foreign = [run.foreign_cpus for run in runs if run.foreign_cpus is not None]
    failures: dict[str, int] = {}
    for run in runs:
        for code, number in run.failures.items():
            failures[code] = failures.get(code, 0) + number
    return BenchRow(
        workload=workload,
        num_requests=num_requests,
        num_prompt_tokens=num_prompt_tokens,
        num_output_tokens=num_output_tokens,
        wall_s=wall_s,
        wall_min_s=min(run.wall_s for run in runs),
        wall_max_s=max(run.wall_s for run in runs),
        output_tokens_per_s=statistics.median(run.num_output_tokens / run.wall_s for run in runs),
        requests_per_s=num_requests / wall_s,
        first_token_p50_s=quantile(first, 0.5),
        first_token_p99_s=quantile(first, 0.99),
        inter_token_p50_s=quantile(inter, 0.5),
        inter_token_p99_s=quantile(inter, 0.99),
        total_p50_s=quantile(total, 0.5),
        total_p99_s=quantile(total, 0.99),
        foreign_cpus=max(foreign, default=None),
        failures=failures,
    )


class ForeignLoad:
    """CPU time of all processes but this one and its descendants: it disturbs a measurement."""

    def __init__(self) -> None:
        """Begin to count."""
        self._started_at_s = time.monotonic()
        self._before_s = self._foreign_s()

    def mean_cpus(self) -> float | None:
        """Return the mean number of CPUs that others have used so far; None without /proc."""
        now_s = self._foreign_s()
        if now_s is None or self._before_s is None:
            return None
        elapsed_s = time.monotonic() - self._started_at_s
        return max(0.0, now_s - self._before_s) / elapsed_s if elapsed_s else 0.0

    def _foreign_s(self) -> float | None:
        try:
            with open("/proc/stat") as stat:
                fields = [int(word) for word in stat.readline().split()[1:]]
        except OSError:
            return None
        ticks = os.sysconf("SC_CLK_TCK")
        user, nice, system, _, _, irq, softirq = fields[:7]
        own_s = sum(_cpu_s(pid, ticks) for pid in _process_tree(os.getpid()))
        return (user + nice + system + irq + softirq) / ticks - own_s


def _process_tree(pid: int) -> list[int]:
    """Return the pids of a process and all its descendants."""
    pids = [pid]
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children") as children:
                pids += [
                    each for child in children.read().split() for each in _process_tree(int(child))
                ]
    except OSError:
        pass  # it has ended in the meantime
    return pids


def _cpu_s(pid: int, ticks: int) -> float:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            fields = stat.read().rsplit(")", 1)[1].split()
    except OSError:
        return 0.0
    return sum(int(word) for word in fields[11:15]) / ticks


def machine() -> dict[str, str | int]:
    """Return the facts that figures depend on: processor, cores, Python, torch and version."""
    return {
        "processor": _processor(),
        "cpus": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "torch": version("torch"),
        "batchmill": version("batchmill"),
        "date": time.strftime("%Y-%m-%d"),
    }


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as info:
            names = [
                line.split(":", 1)[1].strip() for line in info if line.startswith("model name")
            ]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()
