"""Counts the prompt tokens that workers find cached, with and without prefix-aware claims.

`python tests/bench/prefix_claims.py [--workers 3] [--templates 8] [--jobs 96] [--set NAME=VALUE]`
starts an embedded broker and workers with the demo model, submits the jobs of all templates in
random order, and prints a row. It compares counts, so it may run on a busy machine; the seconds
then say little.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

from batchmill.producer import Client, GenerationJob
from batchmill.producer.store.job_store import JobStore
from batchmill.worker.local.broker_config import BrokerConfig
from batchmill.worker.local.embedded_broker import EmbeddedBroker

sys.path.insert(0, str(Path(__file__).resolve().parent))

from bench_worker import bench_worker

PLACES = 2
BLOCK_SIZE = 16
#: Words of a template; a token each, about.
NUM_WORDS = 110
WORDS = ("the", "mill", "grinds", "water", "wheel", "stone", "grain", "flour", "and", "sack")


def worker(
    url: str, name: str, kv_cache_bytes: int, settings: Sequence[str]
) -> AbstractContextManager[None]:
    """Run a worker."""
    given = {
        "BATCHMILL_MODEL": "demo",
        "BATCHMILL_MAX_NUM_SEQS": str(PLACES),
        "BATCHMILL_KV_CACHE_BYTES": str(kv_cache_bytes),
        "BATCHMILL_MAX_MODEL_LEN": "1024",
        "BATCHMILL_BLOCK_SIZE": str(BLOCK_SIZE),
        "OMP_NUM_THREADS": "1",
    }
    return bench_worker(url, name, given, settings)


def make_jobs(num_templates: int, num_jobs: int) -> list[GenerationJob]:
    """Return jobs of all templates in random order, always the same."""
    rng = random.Random(7)
    templates = [" ".join(rng.choices(WORDS, k=NUM_WORDS)) for _ in range(num_templates)]
    jobs = [
        GenerationJob(prompt=f"{templates[i % num_templates]} Question {i}:", max_tokens=4)
        for i in range(num_jobs)
    ]
    rng.shuffle(jobs)
    return jobs


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--templates", type=int, default=8)
    parser.add_argument("--jobs", type=int, default=96)
    parser.add_argument("--kv-cache-bytes", type=int, default=48 << 20)
    parser.add_argument("--set", action="append", default=[], dest="settings")
    given = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        EmbeddedBroker(BrokerConfig(Path(folder))) as broker,
        Client(broker.url) as client,
        ExitStack() as stack,
    ):
        for number in range(given.workers):
            name = f"w{number}"
            stack.enter_context(worker(broker.url, name, given.kv_cache_bytes, given.settings))
        store = JobStore.from_url(broker.url)
        while sum(beat.state == "ready" for beat in store.list_workers()) < given.workers:
            time.sleep(0.05)
        started = time.monotonic()
        handles = client.submit_many(make_jobs(given.templates, given.jobs))
        ends = [ended.result() for ended in client.as_completed(handles, timeout_s=600)]
        total_s = time.monotonic() - started
    prompt_tokens = sum(end.usage.prompt_tokens for end in ends)
    cached_tokens = sum(end.usage.prompt_tokens_details.cached_tokens for end in ends)
    counts = Counter((end.worker or "").partition("@")[0] for end in ends)
    print(
        f"| {given.workers} workers, {given.templates} templates, {given.jobs} jobs | "
        f"{' '.join(given.settings) or 'default'} | {prompt_tokens} | {cached_tokens} | "
        f"{cached_tokens / prompt_tokens:.0%} | {total_s:.1f} | "
        f"{'/'.join(str(counts[name]) for name in sorted(counts))} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
