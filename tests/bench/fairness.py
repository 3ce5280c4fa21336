"""Measures how soon a small tenant's job starts beside a large backlog, and shares by weight.

`python tests/bench/fairness.py [jobs] [singles]` starts an embedded broker and a worker with the
stub engine. Tenant A has a backlog of `jobs` (100,000 by default). Then single jobs are submitted,
first by tenant B, then one by tenant A itself. The script prints how many of A's jobs start between
the submission of a single job and its start. At the end two tenants with weights 3 and 1 share the
worker. The figures count jobs and tokens, so a busy machine changes them little.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from batchmill.producer import Client, JobFields
from batchmill.producer.store.job_store import JobStore
from batchmill.producer.store.tenants import set_tenant
from batchmill.worker.local.broker_config import BrokerConfig
from batchmill.worker.local.embedded_broker import EmbeddedBroker

MAX_NUM_SEQS = 16
SECONDS_BETWEEN = 0.2
SECONDS_SHARED = 20.0
#: Maximum tokens of each tenant's jobs: shares are of tokens, not of jobs.
SHARED_MAX_TOKENS = {"three": 8, "one": 16}
#: The stub counts four characters as one token.
PROMPT_TOKENS = 8


@contextmanager
def mill(trace: Path) -> Iterator[str]:
    """Run a broker and a worker; yield the broker's URL."""
    with tempfile.TemporaryDirectory() as name, EmbeddedBroker(BrokerConfig(Path(name))) as broker:
        settings = {
            "BATCHMILL_BROKER_URL": broker.url,
            "BATCHMILL_ENGINE": "stub",
            "BATCHMILL_STUB": json.dumps({"trace_path": str(trace), "step_time_s": 0.01}),
            "BATCHMILL_MAX_NUM_SEQS": str(MAX_NUM_SEQS),
            "BATCHMILL_LOG_LEVEL": "WARNING",
        }
        command = [sys.executable, "-m", "batchmill.worker.cli", "worker"]
        quiet = subprocess.DEVNULL
        worker = subprocess.Popen(command, env=os.environ | settings, stdout=quiet, stderr=quiet)
        try:
            yield broker.url
        finally:
            worker.terminate()
            worker.wait()


def started(trace: Path) -> list[str]:
    """Return the ids of the jobs in the order in which the engine started them."""
    lines = trace.read_text().splitlines() if trace.exists() else []
    return [line.partition(".")[0] for line in lines if line.endswith(" 0")]


def jobs_ahead(url: str, trace: Path, tenant: str, num_jobs: int, num_singles: int) -> list[int]:
    """Return, per single job of a tenant, how many others start before it after its submission."""
    ahead = []
    with Client(url) as client:
        fields: JobFields = {"max_tokens": 8, "prompt": "x" * 32, "tenant": "a"}
        client.submit_many(fields for _ in range(num_jobs))
        for _ in range(num_singles):
            time.sleep(SECONDS_BETWEEN)
            before = len(started(trace))
            job = client.submit(prompt="single", max_tokens=8, tenant=tenant)
            job.result(timeout_s=3600)
            ahead.append(started(trace).index(job.id) - before)
    return ahead


def shares(url: str, trace: Path) -> Counter[str]:
    """Return the tokens of two tenants with weights 3 and 1 while both have a backlog."""
    store = JobStore.from_url(url)
    set_tenant(store, "three", {"weight": 3})
    tenant_of: dict[str, str] = {}
    with Client(url) as client:
        for tenant, max_tokens in SHARED_MAX_TOKENS.items():
            jobs: Iterator[JobFields] = (
                {"prompt": "x" * 4 * PROMPT_TOKENS, "max_tokens": max_tokens, "tenant": tenant}
                for _ in range(20_000)
            )
            tenant_of |= {job.id: tenant for job in client.submit_many(jobs)}
    store.close()
    alone = len(started(trace))  # before the second tenant submitted jobs
    time.sleep(SECONDS_SHARED)
    tokens = Counter[str]()
    for job_id in started(trace)[alone:]:
        tenant = tenant_of[job_id]
        tokens[tenant] += PROMPT_TOKENS + SHARED_MAX_TOKENS[tenant]
    return tokens


def main() -> None:
    """Run both measurements and print the figures."""
    num_jobs = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    num_singles = int(sys.argv[2]) if len(sys.argv) > 2 else 20
    print(f"{num_jobs} jobs of tenant A wait; the engine runs {MAX_NUM_SEQS} at a time")
    for tenant, name in (("b", "its own tenant"), ("a", "the same tenant")):
        with tempfile.TemporaryDirectory() as folder:
            trace = Path(folder) / "trace"
            with mill(trace) as url:
                few = num_singles if tenant == "b" else 1
                ahead = jobs_ahead(url, trace, tenant, num_jobs, few)
        print(
            f"single jobs of {name}: {statistics.median(ahead):.0f} others started first "
            f"(median of {len(ahead)}), at most {max(ahead)}"
        )
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace"
        with mill(trace) as url:
            tokens = shares(url, trace)
    ratio = tokens["three"] / tokens["one"]
    print(f"tokens at weights 3 and 1: {dict(tokens)}, {ratio:.2f} to 1")


if __name__ == "__main__":
    main()
