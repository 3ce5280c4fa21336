"""Compares the output tokens per second through the queue with those of the engine alone.

`python tests/bench/queue_and_engine.py [rounds]` starts an embedded broker and a worker, loads the
same model into this process, and runs the same requests through both in turn. One is idle while
the other runs.
"""

from __future__ import annotations

import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from batchmill.engine import Engine, EngineConfig, SamplingParams
from batchmill.producer import Client, JobFields
from batchmill.producer.store.job_store import JobStore
from batchmill.worker.local.broker_config import BrokerConfig
from batchmill.worker.local.embedded_broker import EmbeddedBroker

NUM_REQUESTS = 64
SETTINGS: dict[str, Any] = {
    "max_model_len": 2048,
    "max_num_seqs": 64,
    "max_num_batched_tokens": 512,
}


def requests() -> list[tuple[list[int], int]]:
    """Return prompts of 32 to 256 random tokens with output lengths of 32 to 192."""
    rng = random.Random(0)
    sizes = [(rng.randint(32, 256), rng.randint(32, 192)) for _ in range(NUM_REQUESTS)]
    return [([rng.randint(100, 40_000) for _ in range(size)], out) for size, out in sizes]


def run_engine(engine: Engine) -> float:
    """Return the seconds that the engine alone takes."""
    engine.reset_prefix_cache()
    prompts, lengths = zip(*requests(), strict=True)
    params = [SamplingParams(temperature=0, max_tokens=n, ignore_eos=True) for n in lengths]
    started_at = time.perf_counter()
    engine.generate(prompts, params)
    return time.perf_counter() - started_at


def run_queue(client: Client) -> float:
    """Return the seconds from first submission to last result; a salt avoids prefix-cache hits."""
    salt = random.randint(100, 40_000)
    jobs: list[JobFields] = [
        {"prompt": [salt, *prompt[1:]], "max_tokens": n, "temperature": 0, "ignore_eos": True}
        for prompt, n in requests()
    ]
    started_at = time.perf_counter()
    for ended in client.as_completed(client.submit_many(jobs), timeout_s=600):
        ended.result()
    return time.perf_counter() - started_at


def wait_ready(store: JobStore, worker: subprocess.Popen[bytes]) -> None:
    """Wait for the worker's heartbeat."""
    while not any(info.state == "ready" for info in store.list_workers()):
        if worker.poll() is not None:
            raise SystemExit(f"the worker ended with {worker.returncode}; see worker.log")
        time.sleep(0.1)


def main() -> None:
    """Run both in turn and print the rates."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    num_tokens = sum(n for _, n in requests())
    with tempfile.TemporaryDirectory() as name, EmbeddedBroker(BrokerConfig(Path(name))) as broker:
        environment = {f"BATCHMILL_{key.upper()}": str(value) for key, value in SETTINGS.items()}
        with open(Path(name) / "worker.log", "wb") as log:
            worker = subprocess.Popen(
                [sys.executable, "-m", "batchmill.worker.cli", "worker"],
                env=os.environ | environment | {"BATCHMILL_BROKER_URL": broker.url},
                stdout=log,
                stderr=log,
            )
        try:
            with Client(broker.url) as client:
                wait_ready(JobStore.from_url(broker.url), worker)
                engine = Engine(EngineConfig(model="demo", **SETTINGS))
                run_engine(engine), run_queue(client)
                pairs = [(run_engine(engine), run_queue(client)) for _ in range(rounds)]
        finally:
            worker.terminate()
            worker.wait(30)
    for engine_s, queue_s in pairs:
        print(f"engine {num_tokens / engine_s:.0f} tok/s, queue {num_tokens / queue_s:.0f} tok/s")
    ratio = statistics.median(engine_s / queue_s for engine_s, queue_s in pairs)
    print(f"through the queue: {ratio:.3f} of the engine alone (median of {rounds} pairs)")


if __name__ == "__main__":
    main()
