"""Duties that workers share: a large fleet does them no more often than a small one."""

from __future__ import annotations

import pytest

from batchmill.producer.store.job_store import JobStore
from batchmill.worker.jobs import fleet_turns
from batchmill.worker.jobs.fleet_turns import FULL_PACE, FleetTurns

from ...support.session_connections import SessionConnections

INTERVAL_S = 0.5


class Clock:
    """Stands in for the module `time`."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(fleet_turns, "time", clock)
    return clock


def turns_in(clock: Clock, turn: fleet_turns.Turn, seconds: float) -> int:
    """Ask at the interval, and return how often it was due."""
    count = 0
    for _ in range(int(seconds / INTERVAL_S)):
        count += turn.is_due()
        clock.now += INTERVAL_S
    return count


def test_a_small_fleet_keeps_the_interval(clock: Clock) -> None:
    turn = FleetTurns(lambda: FULL_PACE).turn(INTERVAL_S)
    assert turns_in(clock, turn, 30) == 60


def test_many_workers_together_do_no_more_than_a_few(clock: Clock) -> None:
    num_workers, seconds = 40, 120
    each = []
    for _ in range(num_workers):
        start = clock.now
        each.append(turns_in(clock, FleetTurns(lambda: num_workers).turn(INTERVAL_S), seconds))
        clock.now = start
    few = FULL_PACE * seconds / INTERVAL_S
    assert 0.7 * few < sum(each) < 1.4 * few
    assert min(each) > 0


def test_a_duty_with_a_longest_interval_is_done_that_often_in_any_fleet(clock: Clock) -> None:
    turn = FleetTurns(lambda: 1000).turn(INTERVAL_S, most_s=4 * INTERVAL_S)
    assert 0.7 * 50 < turns_in(clock, turn, 200 * INTERVAL_S) < 1.4 * 50


def test_survivors_go_faster_soon_after_most_have_died(clock: Clock) -> None:
    alive = [1000]
    turn = FleetTurns(lambda: alive[0]).turn(INTERVAL_S)
    assert turn.is_due()  # the first turn comes at once
    clock.now += 5
    assert not turn.is_due()
    alive[0] = 2
    clock.now += 6
    assert turn.is_due()
    clock.now += INTERVAL_S
    assert turn.is_due()


def test_sessions_count_until_they_are_silent(redis_url: str) -> None:
    store = JobStore.from_url(redis_url)
    connections = SessionConnections(store.client)
    connections.connect("w1.0a")
    connections.connect("w2.0b")
    assert store.num_live_sessions() == 0
    store.note_session("w1.0a", timeout_ms=60_000)
    store.note_session("w2.0b", timeout_ms=60_000)
    assert store.num_live_sessions() == 2
    store.forget_session("w2.0b")
    assert store.num_live_sessions() == 1
    connections.close()
    store.close()
