"""A job of the class `high` does not wait for a place."""

from __future__ import annotations

from typing import Any

from batchmill.producer.protocol.replies import JobState

from ..conftest import Mill

#: The engine runs one job more than the worker has places for: it stands for a preemption.
ENGINE = {"step_time_s": 0.02, "max_num_seqs": 2}


def fill(mill: Mill, **settings: Any) -> str:
    """Start a worker with one place, and fill it with a job that outlasts the test."""
    mill.start_worker(stub=ENGINE, max_num_seqs=1, **settings)
    normal = mill.submit("normal", max_tokens=5000)
    mill.wait_tokens(normal, 5)
    return normal


def test_a_high_job_runs_while_normal_jobs_fill_the_worker(mill: Mill) -> None:
    running = fill(mill)
    waiting = mill.submit("another", max_tokens=5)
    high = mill.submit("high", max_tokens=5, priority="high")

    (record,) = mill.wait_ended(high)

    assert record.state is JobState.COMPLETED
    assert mill.state(running) is JobState.IN_PROGRESS
    assert mill.state(waiting) is JobState.QUEUED, "only high jobs go beyond the places"


def test_no_place_beyond_the_limit_is_taken_if_the_operator_forbids_it(mill: Mill) -> None:
    running = fill(mill, high_places=0)
    high = mill.submit("high", max_tokens=5, priority="high")
    mill.wait_tokens(running, 60)  # a second, in which the worker would have looked four times
    assert mill.state(high) is JobState.QUEUED
