"""The end of a request becomes the state, error code and retry advice of its job."""

from __future__ import annotations

import json

import pytest

from batchmill.producer.protocol.replies import Claim, JobState
from batchmill.worker.engine_host.messages import AddRequest, Finished
from batchmill.worker.jobs.active_job import ActiveJob
from batchmill.worker.jobs.job_end import JobEnd, finished_end

from ..celery_tasks import a_task


def end_of(finish_reason: str, code: str | None, stopping: JobState | None = None) -> JobEnd:
    claim = Claim("j", "1.n", b"{}", [], 1, False, None, 0, 0, 0)
    job = ActiveJob(claim, AddRequest("j.1", "prompt", None, {}), a_task("j"), stopping=stopping)
    finished = Finished("j.1", "text", [1], finish_reason, 3, error="why", error_code=code)
    return finished_end(job, finished, worker="w1", model="demo")


@pytest.mark.parametrize(
    ("code", "expected", "retryable"),
    [
        ("numerical_error", "numerical_error", False),
        ("out_of_memory", "out_of_memory", True),
        (None, "engine_error", True),
    ],
)
def test_a_request_that_failed_fails_its_job_with_the_engines_code(
    code: str | None, expected: str, retryable: bool
) -> None:
    end = end_of("error", code)
    assert end.state is JobState.FAILED
    assert end.error is not None
    error = json.loads(end.error)
    assert (error["code"], error["message"], error["retryable"]) == (expected, "why", retryable)


@pytest.mark.parametrize(
    ("code", "stopping", "state"),
    [
        ("deadline_exceeded", None, JobState.EXPIRED),
        (None, JobState.EXPIRED, JobState.EXPIRED),
        (None, JobState.CANCELLED, JobState.CANCELLED),
        ("deadline_exceeded", JobState.CANCELLED, JobState.CANCELLED),
    ],
)
def test_an_aborted_request_ends_its_job_for_the_first_reason(
    code: str | None, stopping: JobState | None, state: JobState
) -> None:
    end = end_of("abort", code, stopping)
    assert end.state is state
    assert end.result is not None
    assert json.loads(end.result)["text"] == "text"
