"""Measures jobs per second of one worker: `python tests/bench/worker_overhead.py [jobs] [rounds]`.

The engine is a stub, so the figures contain only the worker's own work: claim, transfer to the
engine, checkpoints, result, and Celery's tracing. All jobs wait in the queue before the worker
starts.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent))

from bulk_mill import STUB, bulk_mill

from batchmill.producer import Client, JobFields

_TICKS = os.sysconf("SC_CLK_TCK")


class Round(NamedTuple):
    """The figures of one round."""

    jobs_per_s: float
    worker_ms_per_job: float


def cpu_s(pid: int) -> float:
    """Return the processor time that a process has used, without its children's."""
    with open(f"/proc/{pid}/stat") as stat:
        fields = stat.read().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def run_round(num_jobs: int, max_tokens: int) -> Round:
    """Queue the jobs, start a worker, and wait for the last result."""
    with bulk_mill(**STUB) as bench, Client(bench.url) as client:
        jobs: Iterator[JobFields] = (
            {"prompt": f"Prompt {i}.", "max_tokens": max_tokens} for i in range(num_jobs)
        )
        ids = [job.id for job in client.submit_many(jobs)]
        worker = bench.start_worker()
        before_s, started_at_s = cpu_s(worker.pid), time.perf_counter()
        done_before = bench.store.counts().totals.get("completed", 0)
        for ended in client.as_completed(ids[-1:]):
            ended.result()
        while bench.store.counts().totals.get("completed", 0) < num_jobs:
            time.sleep(0.01)
        elapsed_s = time.perf_counter() - started_at_s
        num_done = num_jobs - done_before
        return Round(num_done / elapsed_s, (cpu_s(worker.pid) - before_s) * 1000 / num_done)


def main() -> None:
    """Run the rounds for short and for longer jobs, and print the medians."""
    num_jobs = int(sys.argv[1]) if len(sys.argv) > 1 else 3000
    num_rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    for max_tokens in (1, 64):
        rounds = [run_round(num_jobs, max_tokens) for _ in range(num_rounds)]
        rates = sorted(each.jobs_per_s for each in rounds)
        costs = [each.worker_ms_per_job for each in rounds]
        print(
            f"{max_tokens} tokens per job: {statistics.median(rates):.0f} jobs/s "
            f"({rates[0]:.0f}-{rates[-1]:.0f}), {statistics.median(costs):.2f} ms of the worker's "
            "processor time per job",
            flush=True,
        )


if __name__ == "__main__":
    main()
