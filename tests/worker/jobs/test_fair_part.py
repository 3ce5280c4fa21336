"""Which jobs a busy worker gives to one with room."""

from __future__ import annotations

import time
from typing import Any

import pytest

from batchmill.producer.protocol.attempts import Attempt
from batchmill.producer.protocol.calls.spread import Want
from batchmill.producer.protocol.replies import Claim, ReleaseCause
from batchmill.worker.engine_host.messages import AddRequest
from batchmill.worker.jobs.active_job import ActiveJob, Release
from batchmill.worker.jobs.fair_part import (
    OutputShare,
    list_candidates,
    num_due,
    speedup_of,
)

from ..celery_tasks import a_task


def a_job(
    name: str,
    max_tokens: int = 1000,
    num_tokens: int = 100,
    *,
    prompt_tokens: int = 10,
    **more: Any,
) -> ActiveJob:
    """Return a job that has generated its tokens at 20 per second; 0 tokens: it has not begun."""
    moves = tuple(Attempt(1, "w", cause="moved") for _ in range(more.pop("num_moves", 0)))
    fields: dict[str, Any] = {"history": moves, "suspect": more.pop("suspect", 0)}
    document = b"x" * 4 * prompt_tokens
    claim = Claim(name, "1.n", document, [], 1, False, None, 0, 0, 0, **fields)
    params = {"max_tokens": max_tokens, "n": more.pop("n", 1)}
    job = ActiveJob(claim, AddRequest(name, "p", None, params), a_task(name), is_in_engine=True)
    if num_tokens:
        job.receive(range(num_tokens), "")
        job.first_token_at = time.monotonic() - num_tokens / 20
    for field, value in more.items():
        setattr(job, field, value)
    return job


def chosen(
    *jobs: ActiveJob, num_waiting: int = 0, share: float = 1.0, speedup: float = 1.0
) -> list[str]:
    """Return the jobs that would go to a worker which is faster by a factor."""
    candidates = list_candidates(jobs, num_waiting=num_waiting, output_share=share)
    return [each.job.request_id for each in candidates if each.least_speedup <= speedup]


@pytest.mark.parametrize(
    ("held", "speed", "want", "due"),
    [
        (8, None, Want("s", 64, 0), 4),
        (9, 100.0, Want("s", 64, 0), 4),
        (8, 100.0, Want("s", 2, 0), 2),  # its places
        (9, 10.0, Want("s", 64, 0, 20.0), 6),
        (9, 20.0, Want("s", 64, 0, 10.0), 3),
        (8, 10.0, Want("s", 64, 0, 1e300), 7),  # one stays
        (64, None, Want("s", 64, 0), 16),  # the rest a second later
        (1, None, Want("s", 64, 0), 0),
    ],
)
def test_each_worker_ends_up_with_jobs_for_its_speed(
    held: int, speed: float | None, want: Want, due: int
) -> None:
    assert num_due(held, speedup_of(want, speed), want) == due


def test_waiting_jobs_go_first_and_then_those_with_most_tokens_left() -> None:
    jobs = [a_job("short", 300), a_job("long", 900), a_job("old", 600, 0), a_job("new", 600, 0)]
    assert chosen(*jobs, num_waiting=1) == ["new", "long", "short"]
    assert chosen(*jobs, num_waiting=2)[:2] == ["new", "old"]


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("about to end", {"max_tokens": 150}),
        ("much to compute again", {"prompt_tokens": 9000}),
        ("just begun", {"num_tokens": 7}),
        ("in prefill", {"num_tokens": 0}),
        ("moved lately", {"num_moves": 1}),
        ("moved often", {"num_moves": 8, "claimed_at": 0.0}),
        ("several samples", {"n": 2}),
        ("suspect", {"num_tokens": 20, "suspect": 2}),
        ("stopping", {"stopping": "cancelled"}),
        ("on its way", {"leaving": Release(ReleaseCause.SLICED)}),
        ("pending", {"is_in_engine": False}),
    ],
)
def test_a_job_that_should_stay_stays(name: str, fields: dict[str, Any]) -> None:
    assert chosen(a_job(name, **fields), a_job("other")) == ["other"]


@pytest.mark.parametrize(("left_s", "least"), [(2.0, 2.0), (1.5, 3.0), (3.1, 1.0)])
def test_a_job_that_ends_soon_goes_only_to_a_worker_that_gains_a_second_by_its_speed(
    left_s: float, least: float
) -> None:
    job = a_job("soon", 100 + int(20 * left_s))
    (candidate,) = list_candidates([job], num_waiting=0, output_share=1.0)
    assert candidate.least_speedup == pytest.approx(least, rel=0.05)


def test_a_job_that_ends_within_a_second_goes_to_no_worker() -> None:
    assert chosen(a_job("at once", 119), speedup=1e9) == []


def test_a_job_may_move_again_after_a_minute() -> None:
    assert chosen(a_job("rested", num_moves=7, claimed_at=time.monotonic() - 61)) == ["rested"]


def test_what_is_left_is_estimated_from_jobs_that_have_ended() -> None:
    share = OutputShare()
    for _ in range(100):
        share.note(100, 1000)
    assert share.mean < 0.11
    assert chosen(a_job("typical", num_tokens=90), share=share.mean) == []
