"""The only worker is stopped under load, and nothing is lost until there is another one."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from batchmill.producer.protocol.replies import JobState

from ...support.processes import CLI, free_port, process, wait_until
from ..conftest import Mill, stored_result
from .scrape import Scrape, scrape

#: Slow enough that no job ends before the worker is stopped, and only four run at a time.
SLOW = {"step_time_s": 0.02, "max_num_seqs": 4}
NUM_TOKENS = 150


@pytest.fixture
def exporter(mill: Mill, tmp_path: Path) -> Iterator[Callable[[], Scrape]]:
    """The metrics that an autoscaler follows; they outlive the workers."""
    port = free_port()
    environment = {
        "BATCHMILL_BROKER_URL": mill.url,
        "BATCHMILL_METRICS_PORT": str(port),
        "PYTHONSAFEPATH": "1",
    }
    with process(*CLI, "metrics", environment=environment, log=tmp_path / "metrics.log"):

        def is_served() -> bool:
            try:
                return scrape(port).value("batchmill_broker_up") == 1
            except OSError:
                return False

        wait_until(is_served, "the exporter")
        yield lambda: scrape(port)


def test_scale_to_zero_loses_nothing(
    mill: Mill, exporter: Callable[[], Scrape], reference: Callable[..., Any]
) -> None:
    worker = mill.start_worker(stub=SLOW)
    prompts = [f"prompt {number}" for number in range(12)]
    job_ids = [mill.submit(prompt, max_tokens=NUM_TOKENS) for prompt in prompts]
    mill.wait_for(lambda: sum(bool(mill.computed(each)) for each in job_ids) >= 4, "four to run")

    assert worker.end(signal.SIGTERM) == 0

    # No worker, all jobs there, and the autoscaler is told to start one.
    prompts.append("submitted at zero")
    job_ids.append(mill.submit(prompts[-1], max_tokens=NUM_TOKENS))
    records = [mill.record(job_id) for job_id in job_ids]
    assert mill.store.list_workers() == []
    assert {record.state for record in records} == {JobState.QUEUED}
    saved = [len(mill.store.read_tokens(job_id)) for job_id in job_ids]
    assert sum(map(bool, saved)) >= 4
    shown = exporter()
    assert shown.sum("batchmill_workers") == 0
    assert shown.value("batchmill_workers_wanted", model_name="demo") >= 1
    assert shown.sum("batchmill_queued_jobs") == len(job_ids)

    mill.start_worker("w2", stub={"step_time_s": 0.001})
    for prompt, record in zip(prompts, mill.wait_ended(*job_ids), strict=True):
        token_ids, text = reference(prompt, NUM_TOKENS)
        assert record.state is JobState.COMPLETED
        assert stored_result(record)["text"] == text
        assert mill.store.read_tokens(record.id) == token_ids
        # Every token was computed once, whichever worker it was.
        assert mill.computed(record.id) == list(range(NUM_TOKENS))
        assert (record.crashes, record.suspect) == (0, 0)
        causes = [attempt.cause for attempt in record.history]
        assert causes[-1] == "completed"
        assert set(causes[:-1]) <= {"drain", "not_started"}
    shown = exporter()
    assert shown.value("batchmill_jobs_ended_total", state="completed") == len(job_ids)
    assert shown.value("batchmill_attempts_requeued_total", cause="failed") == 0

    def wants_none() -> bool:  # once the worker has reported that it holds no job
        return exporter().value("batchmill_workers_wanted", model_name="demo") == 0

    mill.wait_for(wants_none, "no worker to be wanted")
