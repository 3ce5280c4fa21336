"""Progress events are bounded per job and per worker, and take turns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from batchmill.producer.protocol.replies import Claim
from batchmill.worker.consumer import progress_events
from batchmill.worker.consumer.progress_events import ProgressEvents
from batchmill.worker.engine_host.messages import AddRequest
from batchmill.worker.jobs.active_job import ActiveJob
from batchmill.worker.jobs.outcome import Outcome


class Task:
    """A `TaskHandle` that counts its events."""

    def __init__(self, task_id: str) -> None:
        self.task_id = task_id
        self.request: dict[str, Any] = {}
        self.time_limit_s = None
        self.facts: dict[str, object] = {}
        self.num_events = 0

    def describe(self, facts: Mapping[str, object]) -> None:
        self.facts.update(facts)

    def report_progress(self) -> None:
        self.num_events += 1

    def accept(self) -> None: ...

    def finish(self, outcome: Outcome) -> None: ...

    def drop(self) -> None: ...


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(progress_events, "time", clock)
    return clock


def job(number: int, clock: Clock) -> tuple[ActiveJob, Task]:
    task = Task(f"job_{number}")
    claim = Claim(
        job_id=task.task_id,
        document=b"{}",
        fence="1",
        attempts=1,
        token_ids=[],
        identity="i",
        alone=False,
        suspect=0,
        deadline_at_ms=None,
        claimed_at_ms=0,
        enqueued_at_ms=0,
        started_at_ms=0,
    )
    active = ActiveJob(claim, AddRequest(f"r{number}", None, None, {}), task)
    active.claimed_at, active.is_in_engine = clock.now_s, True
    return active, task


def test_a_job_reports_at_most_once_per_interval_and_only_with_new_tokens(clock: Clock) -> None:
    active, task = job(1, clock)
    events = ProgressEvents(lambda: [active], job_interval_s=5.0)
    for expected, tokens in ((0, [1]), (0, [2]), (1, [3]), (1, [])):
        active.token_ids += tokens
        events.send()
        assert task.num_events == expected
        clock.now_s += 2.5
    clock.now_s += 60
    events.send()
    assert task.num_events == 1  # no new token
    active.token_ids.append(4)
    events.send()
    assert task.num_events == 2
    assert task.facts["tokens"] == 4


def test_many_jobs_take_turns(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_events, "_MAX_EVENTS", 3)
    jobs = [job(number, clock) for number in range(7)]
    events = ProgressEvents(lambda: [active for active, _ in jobs], job_interval_s=5.0)
    counts = []
    for _ in range(8):
        clock.now_s += 5.0
        for active, _task in jobs:
            active.token_ids.append(1)
        before = sum(task.num_events for _, task in jobs)
        events.send()
        counts.append(sum(task.num_events for _, task in jobs) - before)
    assert counts == [3] * 8
    numbers = [task.num_events for _, task in jobs]
    assert max(numbers) - min(numbers) <= 2  # nobody is left out


def test_a_job_that_waits_for_its_engine_or_has_ended_is_not_reported(clock: Clock) -> None:
    active, task = job(1, clock)
    active.is_in_engine = False
    active.token_ids.append(1)
    running = [active]
    events = ProgressEvents(lambda: running, job_interval_s=0.0)
    events.send()
    running.clear()
    events.send()
    assert task.num_events == 0
