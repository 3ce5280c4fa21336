"""Measures time slices with the real engine: what short jobs gain, and what long ones pay.

`python tests/bench/time_slices.py [rounds] [--set NAME=VALUE]...` starts an embedded broker and one
worker with the demo model, all of whose places have long jobs with long prompts when short jobs
come. It prints a row per round for `TIME_SLICE_TOKENS=0` and `48` in turn: the total time, how long
jobs of both kinds took on average, and how often a long job gave way.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from batchmill.producer import Client, GenerationJob, Job, JobStatus
from batchmill.producer.store.job_store import JobStore
from batchmill.worker.local.broker_config import BrokerConfig
from batchmill.worker.local.embedded_broker import EmbeddedBroker

sys.path.insert(0, str(Path(__file__).resolve().parent))

from bench_worker import bench_worker
from real_prompts import entries

PLACES = 4
NUM_LONG, LONG_TOKENS = 4, 192
NUM_SHORT, SHORT_TOKENS = 12, 12
#: Of the prompts of long jobs; a token of English has about four.
PROMPT_CHARS = 800
SETTINGS = {
    "BATCHMILL_MODEL": "demo",
    "BATCHMILL_MAX_NUM_SEQS": str(PLACES),
    "BATCHMILL_MAX_MODEL_LEN": "1024",
    "BATCHMILL_KV_CACHE_BYTES": str(256 << 20),
}


def job(prompt: str, num_tokens: int) -> GenerationJob:
    return GenerationJob(prompt=prompt, max_tokens=num_tokens, temperature=0.0, ignore_eos=True)


def long_prompts(salt: float) -> list[str]:
    texts = [entry.text for entry in entries()]
    return [f"{salt} {' '.join(texts[8 * i : 8 * i + 8])}"[:PROMPT_CHARS] for i in range(NUM_LONG)]


def run(client: Client, store: JobStore) -> tuple[float, list[JobStatus], list[JobStatus]]:
    """Run both kinds of jobs; return the seconds in all, the long jobs and the short ones."""
    salt = random.random()  # no run finds prompts of another one cached
    started = time.monotonic()
    long = client.submit_many([job(prompt, LONG_TOKENS) for prompt in long_prompts(salt)])
    while any(store.num_tokens(each.id) == 0 for each in long):
        time.sleep(0.02)
    short = client.submit_many([job(f"{salt} {i}", SHORT_TOKENS) for i in range(NUM_SHORT)])
    for ended in client.as_completed([*long, *short], timeout_s=600):
        ended.result()
    seconds = time.monotonic() - started
    return seconds, _statuses(client, long), _statuses(client, short)


def _statuses(client: Client, jobs: Sequence[Job]) -> list[JobStatus]:
    return [client.status(each.id) for each in jobs]


def measure(tokens: int, settings: Sequence[str]) -> None:
    """Run the load once in a fresh worker and print its row."""
    given = SETTINGS | {"BATCHMILL_TIME_SLICE_TOKENS": str(tokens)}
    with (
        tempfile.TemporaryDirectory() as folder,
        EmbeddedBroker(BrokerConfig(Path(folder))) as broker,
        Client(broker.url) as client,
        bench_worker(broker.url, "w1", given, settings),
    ):
        store = JobStore.from_url(broker.url)
        while not any(beat.state == "ready" for beat in store.list_workers()):
            time.sleep(0.1)
        for _ in client.as_completed(client.submit_many([job("warm up", 8)] * PLACES)):
            pass
        seconds, long, short = run(client, store)
    print(
        f"| {tokens} | {seconds:.1f} | {_mean_s(long):.1f} | {_mean_s(short):.1f} | "
        f"{max(map(_took_s, short)):.1f} | {sum(len(each.history) - 1 for each in long)} |",
        flush=True,
    )


def _took_s(status: JobStatus) -> float:
    return ((status.finished_at_ms or 0) - (status.enqueued_at_ms or 0)) / 1000


def _mean_s(statuses: Sequence[JobStatus]) -> float:
    return statistics.mean(map(_took_s, statuses))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("rounds", nargs="?", type=int, default=2)
    parser.add_argument("--set", action="append", default=[], dest="settings")
    given = parser.parse_args()
    for _ in range(given.rounds):
        for tokens in (0, 48):
            measure(tokens, given.settings)


if __name__ == "__main__":
    main()
