"""Runs jobs through many light workers: `python tests/bench/fleet_simulation.py --workers 50`.

Each worker speaks to real Redis servers through the real store (see `light_worker.py`); with
`--shards`, each shard is a server of its own, and each worker serves one. It prints what the jobs
cost Redis and what idle workers cost, from Redis' own processor time, which other programs on the
machine hardly change. At the end every job must have ended once; with `--kill`, that share of the
workers dies in the middle, as by SIGKILL.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from light_worker import LightWorker

from batchmill.producer import Client
from batchmill.producer.job.document import GenerationJob
from batchmill.producer.shard_list import shard_name_of
from batchmill.producer.store.job_store import JobStore
from batchmill.worker.local.broker_config import BrokerConfig
from batchmill.worker.local.embedded_broker import EmbeddedBroker

PROMPT = "Once upon a time there was a little girl. " * 12
_NUM_TENANTS = 64


@dataclass(frozen=True)
class Load:
    """What one server has done so far."""

    cpu_s: float
    commands: int
    calls: int
    memory_bytes: int


@dataclass(frozen=True)
class Outcome:
    """What a simulation found. Costs are of all servers together."""

    num_jobs: int
    #: Jobs that did not end, or not as completed.
    num_lost: int
    #: Ends beyond one per job.
    num_doubled: int
    jobs_by_shard: dict[str, int]
    wall_s: float
    #: Redis' processor time per idle worker and second, and script calls.
    idle_us_per_worker_s: float
    idle_calls_per_worker_s: float
    #: Redis' processor time and script calls while jobs ran, of jobs and workers together.
    busy_cpu_s: float
    busy_calls: int
    bytes_per_job: float


class Fleet:
    """Shards and their workers. Owns the servers that it starts."""

    def __init__(self, stack: ExitStack, folder: Path, *, workers: int, shards: int) -> None:
        """Start the servers."""
        self.urls = []
        for number in range(shards):
            broker = EmbeddedBroker(BrokerConfig(directory=folder / f"s{number}"))
            self.urls.append(stack.enter_context(broker).url)
        self.stores = [JobStore.from_url(url) for url in self.urls]
        self.url = " ".join(f"s{number}={url}" for number, url in enumerate(self.urls))
        if shards == 1:
            self.url = self.urls[0]
        self.workers = [
            LightWorker(self.urls[number % shards], f"light-{number}@sim")
            for number in range(workers)
        ]

    def start_workers(self) -> None:
        """Start the workers."""
        for worker in self.workers:
            worker.start()

    def load(self) -> Load:
        """Return what all servers have done so far."""
        found = [_load(store.client) for store in self.stores]
        return Load(
            sum(each.cpu_s for each in found),
            sum(each.commands for each in found),
            sum(each.calls for each in found),
            sum(each.memory_bytes for each in found),
        )

    def completed(self) -> int:
        """Return the ends of jobs so far."""
        return sum(store.counts().totals.get("completed", 0) for store in self.stores)

    def close(self) -> None:
        """End the workers, and raise what one of them has failed with."""
        for worker in self.workers:
            worker.stop()
        for worker in self.workers:
            if worker.failure is not None:
                raise worker.failure


def simulate(
    folder: Path,
    *,
    workers: int,
    shards: int,
    jobs: int,
    tokens: int,
    kill: float,
    idle_s: float,
    timeout_s: float = 600.0,
) -> Outcome:
    """Run a simulation; see the options of the command."""
    with ExitStack() as stack, _fleet(stack, folder, workers, shards) as fleet:
        empty_cpu_per_s, _ = _rates(fleet, idle_s)
        fleet.start_workers()
        time.sleep(min(2.0, idle_s))  # the first heartbeats
        idle_cpu_per_s, idle_calls_per_s = _rates(fleet, idle_s)
        idle_end = fleet.load()
        started_at = time.monotonic()
        ids = _submit(fleet.url, jobs, tokens)
        _kill_some(fleet, jobs, kill, started_at + timeout_s)
        _wait(fleet, jobs, started_at + timeout_s)
        after, wall_s = fleet.load(), time.monotonic() - started_at
        ended = _ends(fleet.url, ids)
        return Outcome(
            num_jobs=jobs,
            num_lost=jobs - ended,
            num_doubled=fleet.completed() - ended,
            jobs_by_shard=dict(Counter(shard_name_of(job_id) or "one" for job_id in ids)),
            wall_s=wall_s,
            idle_us_per_worker_s=1e6 * (idle_cpu_per_s - empty_cpu_per_s) / workers,
            idle_calls_per_worker_s=idle_calls_per_s / workers,
            busy_cpu_s=after.cpu_s - idle_end.cpu_s,
            busy_calls=after.calls - idle_end.calls,
            bytes_per_job=(after.memory_bytes - idle_end.memory_bytes) / jobs,
        )


def _rates(fleet: Fleet, seconds: float) -> tuple[float, float]:
    """Return processor seconds and script calls of the servers per second."""
    before, started_at = fleet.load(), time.monotonic()
    time.sleep(seconds)
    after, elapsed_s = fleet.load(), time.monotonic() - started_at
    return (after.cpu_s - before.cpu_s) / elapsed_s, (after.calls - before.calls) / elapsed_s


@contextmanager
def _fleet(stack: ExitStack, folder: Path, workers: int, shards: int) -> Iterator[Fleet]:
    fleet = Fleet(stack, folder, workers=workers, shards=shards)
    try:
        yield fleet
    finally:
        fleet.close()
        for store in fleet.stores:
            store.close()


def _load(client: Any) -> Load:
    cpu, memory = client.info("cpu"), client.info("memory")
    stats: dict[str, dict[str, Any]] = client.info("commandstats")
    calls = sum(int(stats.get(f"cmdstat_{name}", {}).get("calls", 0)) for name in _SCRIPT_CALLS)
    return Load(
        cpu["used_cpu_user"] + cpu["used_cpu_sys"],
        sum(int(each["calls"]) for each in stats.values()),
        calls,
        memory["used_memory"],
    )


_SCRIPT_CALLS = ("evalsha", "brpop")


def _submit(url: str, num_jobs: int, num_tokens: int) -> list[str]:
    jobs = (
        GenerationJob(prompt=PROMPT, max_tokens=num_tokens, tenant=f"tenant-{i % _NUM_TENANTS}")
        for i in range(num_jobs)
    )
    with Client(url) as client:
        return [job.id for job in client.submit_many(jobs)]


def _kill_some(fleet: Fleet, num_jobs: int, share: float, deadline: float) -> None:
    """Kill a share of the workers when a quarter of the jobs has ended."""
    victims = fleet.workers[: int(share * len(fleet.workers))]
    while victims and fleet.completed() < num_jobs / 4:
        _check_time(fleet, num_jobs, deadline)
    for worker in victims:
        worker.kill()
        fleet.workers.remove(worker)


def _wait(fleet: Fleet, num_jobs: int, deadline: float) -> None:
    while fleet.completed() < num_jobs:
        _check_time(fleet, num_jobs, deadline)


def _check_time(fleet: Fleet, num_jobs: int, deadline: float) -> None:
    time.sleep(0.1)
    if time.monotonic() > deadline:
        raise TimeoutError(f"{fleet.completed()} of {num_jobs} jobs have ended in time")


def _ends(url: str, ids: Sequence[str]) -> int:
    """Return how many jobs have a result with all their tokens."""
    num_ended = 0
    with Client(url) as client:
        for ended in client.as_completed(ids, timeout_s=60):
            num_ended += bool(ended.result().text)
    return num_ended


def main() -> None:
    """Run the simulation of the options and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, default=50)
    parser.add_argument("--shards", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument("--tokens", type=int, default=64, help="output tokens of each job")
    parser.add_argument("--kill", type=float, default=0.0, help="share of workers that die")
    parser.add_argument("--idle-s", type=float, default=10.0, help="seconds without jobs before")
    options = parser.parse_args()
    # On a busy machine, fifty workers in one process may wait long for a reply that is there.
    os.environ.setdefault("BATCHMILL_BROKER_TIMEOUT_S", "120")
    with tempfile.TemporaryDirectory(prefix="bm-sim-") as folder:
        found = simulate(
            Path(folder),
            workers=options.workers,
            shards=options.shards,
            jobs=options.jobs,
            tokens=options.tokens,
            kill=options.kill,
            idle_s=options.idle_s,
        )
    print(
        f"{options.workers} workers, {options.shards} shards, {found.num_jobs} jobs of "
        f"{options.tokens} tokens, {options.kill:.0%} of the workers killed: "
        f"{found.num_lost} lost, {found.num_doubled} doubled, in {found.wall_s:.1f} s\n"
        f"jobs by shard: {found.jobs_by_shard}\n"
        f"idle: {found.idle_us_per_worker_s:.0f} us of Redis and "
        f"{found.idle_calls_per_worker_s:.1f} calls per worker and second\n"
        f"busy: {found.busy_cpu_s:.2f} s of Redis and {found.busy_calls} calls; "
        f"{found.bytes_per_job:.0f} bytes per job"
    )


if __name__ == "__main__":
    main()
