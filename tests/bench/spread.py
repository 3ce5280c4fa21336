"""Measures how the jobs of one queue spread over two workers that are not alike.

`python tests/bench/spread.py [loads] [--set NAME=VALUE]...` starts an embedded broker and workers
with the stub engine, whose step takes longer the more requests run, and prints a row per load:

- `even`: two equal workers and far more jobs than both have places for;
- `late`: the second worker starts while the first one holds all jobs, all of them long;
- `slow`: the second worker takes four times as long per step;
- `mixed`: two equal workers, all of whose places have long jobs when many short ones come.

The total time is from the submission to the last end; the ideal is that of a split in proportion to
speed, without any delay, at the moment at which the second worker is ready. `--set` passes a
setting to the workers: `--set TAKEOVER=false` shows the time without that feature. `--profile`
prints which worker ran what, when, and how long a step took.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from batchmill.producer import Client, GenerationJob, Job, JobStatus
from batchmill.producer.protocol.attempts import Attempt
from batchmill.producer.store.job_store import JobStore
from batchmill.worker.local.broker_config import BrokerConfig
from batchmill.worker.local.embedded_broker import EmbeddedBroker

sys.path.insert(0, str(Path(__file__).resolve().parent))

from bench_worker import bench_worker

STEP_S, SEQ_S = 0.004, 0.002
PLACES = 16
#: Of each long job: they outlast the start of a worker on a busy machine.
LATE_TOKENS = 2500
#: Of the stub engine, which ends longer requests.
MAX_MODEL_LEN = 4096


@dataclass(frozen=True)
class Load:
    """Jobs and the workers that run them."""

    num_jobs: int
    num_tokens: int
    #: Of the second worker: how much longer its steps take, and whether it starts late.
    slowness: float = 1.0
    is_late: bool = False
    #: Jobs that have all places when the others come, and their tokens.
    num_long: int = 0
    long_tokens: int = 0

    def ideal_s(self, joined_s: float) -> float:
        """Return the time of a split without delays; the second worker joins after `joined_s`."""
        if self.is_late:
            done = joined_s / _step_s(self.num_jobs)
            return joined_s + (self.num_tokens - done) * _step_s(self.num_jobs / 2)
        tokens = self.num_jobs * self.num_tokens + self.num_long * self.long_tokens
        share = tokens / (1 + 1 / self.slowness)  # of the first worker
        return share / PLACES * _step_s(PLACES)


LOADS = {
    "even": Load(192, 40),
    "late": Load(PLACES, LATE_TOKENS, is_late=True),
    "slow": Load(192, 40, slowness=4.0),
    "mixed": Load(96, 20, num_long=2 * PLACES, long_tokens=400),
}


def _step_s(num_running: float) -> float:
    return STEP_S + SEQ_S * num_running


def worker(
    url: str, name: str, slowness: float, settings: Sequence[str]
) -> AbstractContextManager[None]:
    """Run a worker."""
    stub = {"step_time_s": STEP_S * slowness, "seq_time_s": SEQ_S * slowness}
    given = {
        "BATCHMILL_ENGINE": "stub",
        "BATCHMILL_STUB": json.dumps(stub),
        "BATCHMILL_MAX_NUM_SEQS": str(PLACES),
        "BATCHMILL_MAX_MODEL_LEN": str(MAX_MODEL_LEN),
    }
    return bench_worker(url, name, given, settings)


def wait_ready(store: JobStore, num_workers: int) -> None:
    while sum(beat.state == "ready" for beat in store.list_workers()) < num_workers:
        time.sleep(0.02)


def submit_long(client: Client, store: JobStore, load: Load) -> list[Job]:
    """Submit the long jobs, and wait until all of them run."""
    jobs = [
        GenerationJob(prompt=f"long {i}", max_tokens=load.long_tokens) for i in range(load.num_long)
    ]
    handles = client.submit_many(jobs) if jobs else []
    while any(store.num_tokens(handle.id) == 0 for handle in handles):
        time.sleep(0.02)
    return list(handles)


def print_profile(jobs: Sequence[JobStatus]) -> None:
    """Print what ran where and when: a line per worker, attempt and cause of its end.

    The time per token is that of a step, so it is compared with the engine's own: what is more is
    the load of the machine, and what the worker does beside the engine.
    """
    groups: dict[tuple[str, int, str], list[Attempt]] = {}
    for job in jobs:
        for attempt in job.history:
            worker = (attempt.worker or "").partition("@")[0]
            name = (worker, attempt.attempt or 0, attempt.cause or "")
            groups.setdefault(name, []).append(attempt)
    start_ms = min(attempt.claimed_at_ms or 0 for some in groups.values() for attempt in some)
    for (worker, number, cause), some in sorted(groups.items()):
        begins = sorted(((each.claimed_at_ms or 0) - start_ms) / 1000 for each in some)
        ends = sorted(((each.ended_at_ms or 0) - start_ms) / 1000 for each in some)
        tokens = sum((each.tokens_at_end or 0) - (each.tokens_at_claim or 0) for each in some)
        ms = 1000 * (sum(ends) - sum(begins)) / max(1, tokens)
        print(
            f"  {worker}, attempt {number}, {cause}: {len(some)} jobs, claimed at "
            f"{begins[0]:.1f} to {begins[-1]:.1f} s, ended at {ends[0]:.1f} to {ends[-1]:.1f} s, "
            f"{tokens / len(some):.0f} tokens each at {ms:.1f} ms",
            flush=True,
        )


def measure(name: str, settings: Sequence[str], *, profiles: bool) -> None:
    """Run one load and print its row."""
    load = LOADS[name]
    with (
        tempfile.TemporaryDirectory() as folder,
        EmbeddedBroker(BrokerConfig(Path(folder))) as broker,
        Client(broker.url) as client,
        worker(broker.url, "w1", 1.0, settings),
    ):
        store = JobStore.from_url(broker.url)
        wait_ready(store, 1)
        jobs = [
            GenerationJob(prompt=f"{i}", max_tokens=load.num_tokens) for i in range(load.num_jobs)
        ]
        if load.is_late:
            started = time.monotonic()
            handles = client.submit_many(jobs)
            time.sleep(2.0)
        with worker(broker.url, "w2", load.slowness, settings):
            wait_ready(store, 2)
            joined_s = 0.0
            if load.is_late:
                joined_s = time.monotonic() - started
            else:
                started = time.monotonic()
                handles = submit_long(client, store, load) + client.submit_many(jobs)
            ends = [ended.result() for ended in client.as_completed(handles, timeout_s=300)]
            total_s = time.monotonic() - started
            if profiles:
                print_profile([client.status(handle.id) for handle in handles])
    counts = Counter((end.worker or "").partition("@")[0] for end in ends)
    moved = sum(end.attempt > 1 for end in ends)
    short = [end for end in ends if end.usage.completion_tokens == load.num_tokens]
    waits = sorted(end.metrics.total_time_s or 0.0 for end in short)
    ideal_s = load.ideal_s(joined_s)
    print(
        f"| {name} | {' '.join(settings) or '-'} | {total_s:.1f} | {ideal_s:.1f} | "
        f"{total_s / ideal_s:.2f} | {counts['w1']}/{counts['w2']} | {moved} | "
        f"{statistics.mean(waits):.1f} | {waits[-1]:.1f} |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("loads", nargs="*", default=list(LOADS))
    parser.add_argument("--set", action="append", default=[], dest="settings")
    parser.add_argument("--profile", action="store_true")
    given = parser.parse_args()
    for name in given.loads or list(LOADS):
        measure(name, given.settings, profiles=given.profile)


if __name__ == "__main__":
    main()
