"""A worker with room says so as soon as that changes, and repeats it only once a second."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from batchmill.producer.protocol import keys
from batchmill.producer.store.job_store import JobStore
from batchmill.worker.jobs import takeover
from batchmill.worker.jobs.fair_part import OutputShare
from batchmill.worker.jobs.fleet_turns import FULL_PACE, FleetTurns
from batchmill.worker.jobs.throughput import BusySpeed
from batchmill.worker.settings import WorkerSettings

SESSION = "w1.0123456789abcdef"


class Clock:
    """Stands in for the module `time`."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class Worker:
    """The takeover of a worker with a real store; what it holds is what a test says."""

    def __init__(self, store: JobStore, num_workers: int) -> None:
        self.store = store
        self.jobs: list[Any] = []
        self.is_open = True
        parts: Any = SimpleNamespace(
            link=SimpleNamespace(ready=SimpleNamespace(identity="model 1")),
            gate=SimpleNamespace(is_open=lambda: self.is_open),
        )
        jobs: Any = self
        self.takeover = takeover.Takeover(
            *(WorkerSettings(takeover=True), store, parts.link, jobs, parts.gate, parts),
            BusySpeed(),
            session=SESSION,
            consumes_all=lambda: True,
            share=OutputShare(),
            turns=FleetTurns(lambda: num_workers),
        )

    def __len__(self) -> int:
        return len(self.jobs)

    def snapshot(self) -> list[Any]:
        return []

    def wishes(self) -> bool:
        """Look, and return whether that has written a wish."""
        key = keys.wants("demo")
        self.store.client.delete(key)
        self.takeover.look()
        return bool(self.store.client.exists(key))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(takeover, "time", clock)
    return clock


@pytest.fixture
def store(redis_url: str) -> Iterator[JobStore]:
    store = JobStore.from_url(redis_url)
    yield store
    store.close()


def test_a_wish_that_says_the_same_is_written_once_a_second(store: JobStore, clock: Clock) -> None:
    worker = Worker(store, 1)
    assert [worker.wishes(), worker.wishes()] == [True, False]
    worker.jobs.append(object())
    assert [worker.wishes(), worker.wishes()] == [True, False]
    clock.now += 1.0
    assert worker.wishes()


def test_a_wish_that_was_not_noted_is_written_as_soon_as_no_job_waits(
    store: JobStore, clock: Clock
) -> None:
    worker = Worker(store, 1)
    queue = keys.announced(keys.queue_names("demo")[0])
    store.client.rpush(queue, "a job")
    assert not worker.wishes()
    store.client.delete(queue)
    assert worker.wishes()


def test_a_closed_gate_takes_the_wish_back_once(store: JobStore, clock: Clock) -> None:
    worker = Worker(store, 1)
    worker.takeover.look()
    worker.is_open = False
    worker.takeover.look()
    assert not store.client.exists(keys.wants("demo"))
    worker.is_open = True
    assert worker.wishes()


@pytest.mark.parametrize(("num_workers", "looks"), [(FULL_PACE, True), (1000, False)])
def test_workers_of_a_large_fleet_do_not_look_four_times_a_second(
    store: JobStore, num_workers: int, looks: bool
) -> None:
    worker = Worker(store, num_workers)
    assert worker.wishes()
    worker.jobs.append(object())
    assert worker.wishes() is looks
