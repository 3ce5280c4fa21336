"""Measures what jobs and workers cost one Redis: `python tests/bench/one_redis.py`.

The costs are Redis' own processor time (`INFO cpu`), commands and script calls (`INFO
commandstats`) and memory, phase by phase, so they hardly depend on what else the machine does.
`docs/scale.md` calculates with them. The scripts are called through the real store, as workers call
them; the idle workers are real processes.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from bulk_mill import STUB, bulk_mill

from batchmill.producer import AsyncClient, Client, JobResult, JobState
from batchmill.producer.job.document import GenerationJob
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.outbox import DeliveryOutcome
from batchmill.producer.protocol.replies import Claim, TokenWrite
from batchmill.producer.store.job_store import JobStore
from batchmill.worker.local.broker_config import BrokerConfig
from batchmill.worker.local.embedded_broker import EmbeddedBroker

PROMPT = "Once upon a time there was a little girl. " * 12
#: Tokens per checkpoint and job, and jobs that one checkpoint writes together.
STEP_TOKENS, WIDTH = 8, 16
_LEASE_MS = 60_000
_QUEUE = keys.queue_name("demo", "normal")


@dataclass(frozen=True)
class Cost:
    """What one unit of a phase costs Redis."""

    cpu_us: float
    commands: float
    bytes: float


class Meter:
    """Reads a server before and after a phase."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def measure(self, num_units: int, work: Callable[[], None]) -> Cost:
        """Run a phase and return its cost per unit."""
        before = self._read()
        work()
        cpu_s, commands, used = (b - a for a, b in zip(before, self._read(), strict=True))
        return Cost(1e6 * cpu_s / num_units, commands / num_units, used / num_units)

    def _read(self) -> tuple[float, int, int]:
        cpu = self._client.info("cpu")
        stats: dict[str, dict[str, Any]] = self._client.info("commandstats")
        commands = sum(int(each["calls"]) for name, each in stats.items() if "info" not in name)
        return (
            cpu["used_cpu_user"] + cpu["used_cpu_sys"],
            commands,
            self._client.info("memory")["used_memory"],
        )


class Readers:
    """Clients that stream the output of jobs, in a thread with an event loop."""

    def __init__(self, url: str, job_ids: Sequence[str]) -> None:
        self._url, self._job_ids = url, job_ids
        self._thread = threading.Thread(target=lambda: asyncio.run(self._read_all()), daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Return when all streams have ended."""
        self._thread.join(120)

    async def _read_all(self) -> None:
        async with AsyncClient(self._url) as client:
            await asyncio.gather(*(self._read(client, job_id) for job_id in self._job_ids))

    async def _read(self, client: AsyncClient, job_id: str) -> None:
        async for _ in client.stream(job_id, timeout_s=120):
            pass


def run_jobs(
    store: JobStore, url: str, num_jobs: int, num_tokens: int, kind: str
) -> dict[str, Cost]:
    """Run jobs of one kind (`plain`, `streaming` or `webhook`) and return the cost by phase."""
    meter, costs = Meter(store.client), {}
    webhook = "https://example.com/hook" if kind == "webhook" else None
    jobs = [
        GenerationJob(prompt=PROMPT, max_tokens=num_tokens, tenant=f"t{i % 16}", webhook=webhook)
        for i in range(num_jobs)
    ]
    ids: list[str] = []
    with Client(url) as client:
        costs["submit"] = meter.measure(
            num_jobs, lambda: ids.extend(job.id for job in client.submit_many(jobs))
        )
    claims: dict[str, Claim] = {}
    costs["claim"] = meter.measure(num_jobs, lambda: _claim_all(store, num_jobs, claims))
    readers = Readers(url, ids) if kind == "streaming" else None
    if readers is not None:
        channels = keys.channel("*")
        _wait_for(lambda: len(store.client.pubsub_channels(channels)) >= num_jobs)
    num_writes = num_jobs * (num_tokens // STEP_TOKENS)
    costs["checkpoint"] = meter.measure(
        num_writes, lambda: _checkpoint_all(store, claims, num_tokens)
    )

    def end() -> None:
        for job_id, claim in claims.items():
            _complete(store, job_id, claim, num_tokens)
        if readers is not None:
            readers.wait()

    costs["complete"] = meter.measure(num_jobs, end)
    if webhook is not None:
        costs["deliver"] = meter.measure(num_jobs, lambda: _deliver_all(store, num_jobs))
    return costs


def _claim_all(store: JobStore, num_jobs: int, claims: dict[str, Claim]) -> None:
    client: Any = store.client
    while len(claims) < num_jobs:
        reply = client.brpop([keys.announced(_QUEUE)], timeout=5)
        job_id = json.loads(reply[1])["headers"]["id"]
        claim = store.claim(job_id, owner="w", lease_ms=_LEASE_MS, identity="i", session="w.1")
        assert isinstance(claim, Claim), claim
        claims[job_id] = claim


def _checkpoint_all(store: JobStore, claims: dict[str, Claim], num_tokens: int) -> None:
    ids = list(claims)
    for start in range(0, num_tokens, STEP_TOKENS):
        for first in range(0, len(ids), WIDTH):
            writes = [
                TokenWrite(
                    *(job_id, claims[job_id].fence, start),
                    range(start, start + STEP_TOKENS),
                    text=b" word" * STEP_TOKENS,
                    text_position=5 * start,
                    identity="i",
                )
                for job_id in ids[first : first + WIDTH]
            ]
            store.checkpoint(writes, lease_ms=_LEASE_MS)


def _complete(store: JobStore, job_id: str, claim: Claim, num_tokens: int) -> None:
    result = JobResult(
        id=job_id, model="demo", status=JobState.COMPLETED, text=" word" * num_tokens
    )
    store.complete(
        job_id,
        fence=claim.fence,
        state=JobState.COMPLETED,
        result=result.model_dump_json(),
        position=num_tokens,
    )


def _deliver_all(store: JobStore, num_events: int) -> None:
    num_settled = 0
    while num_settled < num_events:
        entries = store.outbox_claim(owner="d", limit=64, lease_ms=_LEASE_MS)
        for entry in entries:
            store.outbox_settle(
                entry.event_id, fence=entry.fence, outcome=DeliveryOutcome.DELIVERED
            )
        num_settled += len(entries)


def _wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("the readers do not subscribe")
        time.sleep(0.05)


def measure_idle(num_workers: int, seconds: float) -> Cost:
    """Return what a real idle worker costs Redis per second; the difference of more and fewer."""
    with bulk_mill(**STUB) as bench:
        meter, found = Meter(bench.store.client), []
        for number in range(num_workers + 1):
            if number:
                bench.start_worker()
            found.append(meter.measure(1, lambda: time.sleep(seconds)))
        more, none = found[-1], found[0]
        return Cost(
            (more.cpu_us - none.cpu_us) / num_workers / seconds,
            (more.commands - none.commands) / num_workers / seconds,
            0.0,
        )


def main() -> None:
    """Print the medians of some rounds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=1000)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--idle-workers", type=int, default=3, help="0 leaves this part out")
    parser.add_argument("--idle-s", type=float, default=10.0)
    options = parser.parse_args()
    for kind in ("plain", "streaming", "webhook"):
        rounds = []
        for _ in range(options.rounds):
            with (
                tempfile.TemporaryDirectory(prefix="bm-one-") as folder,
                EmbeddedBroker(BrokerConfig(Path(folder))) as broker,
            ):
                store = JobStore.from_url(broker.url)
                num_jobs = min(options.jobs, 100) if kind == "streaming" else options.jobs
                rounds.append(run_jobs(store, broker.url, num_jobs, options.tokens, kind))
                store.close()
        for phase in rounds[0]:
            costs = [each[phase] for each in rounds]
            print(
                f"{kind:9} {phase:10} "
                f"{statistics.median(cost.cpu_us for cost in costs):7.0f} us "
                f"{statistics.median(cost.commands for cost in costs):7.2f} commands "
                f"{statistics.median(cost.bytes for cost in costs):7.0f} bytes",
                flush=True,
            )
    if options.idle_workers:
        idle = measure_idle(options.idle_workers, options.idle_s)
        print(f"idle worker: {idle.cpu_us:.0f} us and {idle.commands:.1f} commands per second")


if __name__ == "__main__":
    main()
