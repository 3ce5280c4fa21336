"""Measures what metrics cost a worker: counting, per step, and rendering, per scrape.

    python tests/bench/metrics_scrape.py [--num-seqs 64] [--step-ms 20]

Counting happens in the worker's main process, in the thread that reads from the engine; the engine
process only notes three numbers per step. A scrape is rendered by a thread of the main process.
Times are processor times, so that other programs of the machine do not count.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable

from batchmill.producer.protocol.replies import Claim
from batchmill.worker.engine_host.messages import AddRequest, EngineLoad, EngineWork, StepReport
from batchmill.worker.jobs.active_job import ActiveJob
from batchmill.worker.jobs.worker_metrics import WorkerMetrics
from batchmill.worker.metrics.exposition import Exposition
from batchmill.worker.settings import WorkerSettings

_STEPS = 20_000
_SCRAPES = 200
_SCRAPE_INTERVAL_S = 15.0


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num-seqs", type=int, default=64, help="requests per step")
    parser.add_argument("--step-ms", type=float, default=20.0, help="a step to compare with")
    options = parser.parse_args()
    os.environ["BATCHMILL_MAX_NUM_SEQS"] = str(options.num_seqs)
    metrics = WorkerMetrics(WorkerSettings())
    jobs = [_job(number) for number in range(options.num_seqs)]
    number = 0

    def count_step() -> None:
        nonlocal number
        number += 1
        at_s = number * options.step_ms / 1000
        work = EngineWork([(len(jobs), len(jobs), options.step_ms / 1000)], 0)
        report = StepReport(number, number, EngineLoad(len(jobs), 0, 1), at_s=at_s, work=work)
        metrics.note_report(report)
        metrics.note_tokens([(job, 1) for job in jobs], at_s)

    counting_ms = _processor_ms(count_step, _STEPS // options.num_seqs)
    exposition = Exposition([metrics.engine.read, metrics.jobs.read])
    size = len(exposition.render("")[0])
    scrape_ms = _processor_ms(lambda: exposition.render(""), _SCRAPES)
    share = counting_ms / options.step_ms
    print(f"counting: {1000 * counting_ms:.1f} us per step of {options.num_seqs} requests")
    print(f"          = {share:.2%} of a step of {options.step_ms:g} ms")
    print(f"scrape:   {scrape_ms:.2f} ms of processor time, {size / 1024:.1f} KiB")
    print(
        f"          = {scrape_ms / 1000 / _SCRAPE_INTERVAL_S:.3%} of a processor at one per "
        f"{_SCRAPE_INTERVAL_S:g} s"
    )


def _processor_ms(action: Callable[[], object], times: int) -> float:
    """Return the milliseconds of one call, the least of five rounds."""
    rounds = []
    for _ in range(5):
        start = time.thread_time()
        for _ in range(times):
            action()
        rounds.append(1000 * (time.thread_time() - start) / times)
    return min(rounds)


def _job(number: int) -> ActiveJob:
    claim = Claim(
        job_id=f"j{number}",
        fence="1.n",
        document=b"",
        token_ids=[],
        attempts=1,
        alone=False,
        deadline_at_ms=None,
        enqueued_at_ms=0,
        started_at_ms=0,
        claimed_at_ms=0,
    )
    task = object()  # nothing is reported to Celery here
    return ActiveJob(claim, AddRequest(f"j{number}", None, None, {}), task)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
