"""Measures the jobs per second that one client submits.

`python tests/bench/submit_many.py redis://… [jobs]` runs `Client.submit_many` (check, store and
announce) against the given server, which should hold nothing of value: the jobs stay in it, and no
worker runs them.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

from batchmill.producer import Client, JobFields


def main() -> None:
    """Submit the jobs and print the rate."""
    url = sys.argv[1]
    num_jobs = int(sys.argv[2]) if len(sys.argv) > 2 else 20_000
    jobs: Iterator[JobFields] = (
        {"prompt": f"Prompt number {i}.", "max_tokens": 32} for i in range(num_jobs)
    )
    with Client(url) as client:
        started_at, started_cpu = time.perf_counter(), time.process_time()
        count = len(client.submit_many(jobs))
        elapsed_s = time.perf_counter() - started_at
        cpu_s = time.process_time() - started_cpu
    print(f"{count} jobs in {elapsed_s:.2f} s: {count / elapsed_s:.0f} jobs/s")
    print(f"processor time of the client: {1e6 * cpu_s / count:.0f} us per job")


if __name__ == "__main__":
    main()
