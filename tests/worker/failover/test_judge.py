"""The oracle of `batchmill bench failover` finds each broken promise, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest

from batchmill.worker.failover.oracle import Promise, TrackedJob, judge
from batchmill.worker.failover.run import share

KEPT = TrackedJob(
    "a",
    "prompt",
    8,
    job_ids=["gen_1"],
    texts={"text"},
    state="completed",
    fence="2.x",
    completed_fence="2.x",
)


def broken(job: TrackedJob, webhooks: dict[str, set[str]]) -> list[Promise]:
    return [each.promise for each in judge([job], {"a": "text"}, webhooks)]


@pytest.mark.parametrize(
    ("changes", "webhooks", "promises"),
    [
        ({}, {"gen_1": {"evt_1"}}, []),
        ({"job_ids": ["gen_0", "gen_1"]}, {"gen_0": {"evt_0"}, "gen_1": {"evt_1"}}, []),
        ({"state": "in_progress"}, {"gen_1": {"evt_1"}}, [Promise.LOST]),
        ({"state": ""}, {"gen_1": {"evt_1"}}, [Promise.LOST]),
        ({}, {}, [Promise.LOST]),
        ({"job_ids": ["gen_0", "gen_1"]}, {"gen_0": {"evt_0"}}, [Promise.LOST]),
        ({"texts": {"text", "other"}}, {"gen_1": {"evt_1"}}, [Promise.DOUBLED]),
        ({}, {"gen_1": {"evt_1", "evt_2"}}, [Promise.DOUBLED]),
        ({"texts": {"other"}}, {"gen_1": {"evt_1"}}, [Promise.WRONG]),
        ({"texts": set()}, {"gen_1": {"evt_1"}}, [Promise.WRONG]),
        ({"completed_fence": "1.y"}, {"gen_1": {"evt_1"}}, [Promise.FENCE]),
    ],
)
def test_each_broken_promise_is_found(
    changes: dict[str, object], webhooks: dict[str, set[str]], promises: list[Promise]
) -> None:
    assert broken(replace(KEPT, **changes), webhooks) == promises  # type: ignore[arg-type]


@pytest.mark.parametrize(("num_jobs", "num_kills"), [(60, 7), (2, 5), (40, 1), (60, 2)])
def test_all_jobs_are_submitted_before_the_kills(num_jobs: int, num_kills: int) -> None:
    shares = [share(num_jobs, num_kills, number) for number in range(num_kills)]
    assert sum(shares) == num_jobs
    assert max(shares) - min(shares) <= 1
