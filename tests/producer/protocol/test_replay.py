"""Webhook events replayed since a time: the same ids and bodies, after all other events."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls.jobs import forget
from batchmill.producer.protocol.outbox import (
    ClaimLimits,
    DeliveryOutcome,
    Lane,
    ReplayedPage,
    claim_limits,
)
from batchmill.producer.store.deliveries import Deliveries
from batchmill.producer.store.endpoints import Endpoints
from batchmill.producer.store.replay import Replay, ReplayQuery

HOOK, OTHER = "https://example.com/hook", "https://example.com/other"
EVERYTHING = ReplayQuery(since_ms=0)


def end(bench: Any, job_id: str, url: str = HOOK, *, delivered: bool = True) -> str:
    """End a job, and settle its event; return the event's id."""
    bench.submit(job_id, webhook=url)
    bench.store.cancel(job_id)
    [entry] = bench.store.outbox_claim(owner="d", limit=1, lease_ms=60_000)
    bench.store.outbox_set_body_once(entry.event_id, f"body of {job_id}".encode())
    outcome = DeliveryOutcome.DELIVERED if delivered else DeliveryOutcome.EXHAUSTED
    bench.store.outbox_settle(entry.event_id, fence=entry.fence, outcome=outcome)
    return str(entry.event_id)


def replay_events(
    bench: Any,
    query: ReplayQuery,
    *,
    max_waiting: int = 100,
    wait: Callable[[], None] | None = None,
) -> Iterator[ReplayedPage]:
    """Replay events and yield the pages; `wait` is called while too many events wait."""
    running = Replay(query, time.time_ns() // 1_000_000, max_waiting=max_waiting)
    while not running.is_done:
        page = bench.store.run(running.call())
        if page is None:
            assert wait is not None
            wait()
        else:
            running.take(page)
            yield page


def replay(bench: Any, query: ReplayQuery) -> int:
    return sum(page.num_queued for page in replay_events(bench, query))


def take(bench: Any, limits: ClaimLimits | None = None) -> list[Any]:
    limit = limits or claim_limits(100)
    entries: list[Any] = bench.store.outbox_claim(owner="d", limit=limit, lease_ms=60_000)
    return entries


def test_a_replayed_event_has_its_id_and_bytes_and_is_settled_again(bench: Any) -> None:
    event_id = end(bench, "j")
    assert replay(bench, EVERYTHING) == 1
    assert replay(bench, EVERYTHING) == 0  # it waits already
    [entry] = take(bench)
    assert (entry.event_id, entry.body, entry.attempt) == (event_id, b"body of j", 1)
    assert entry.lane is Lane.REPLAY
    bench.store.outbox_settle(event_id, fence=entry.fence, outcome=DeliveryOutcome.RETRY)
    [entry] = take(bench)
    assert (entry.attempt, entry.lane) == (2, Lane.REPLAY)
    bench.store.outbox_settle(event_id, fence=entry.fence, outcome=DeliveryOutcome.DELIVERED)
    assert 0 < bench.redis.ttl(keys.event(event_id)) <= keys.EVENT_TTL_S
    assert replay(bench, EVERYTHING) == 1


def test_live_events_come_before_replayed_ones_which_have_a_share(bench: Any) -> None:
    for number in range(4):
        end(bench, f"old_{number}")
    assert replay(bench, EVERYTHING) == 4
    bench.submit("new", webhook=HOOK)
    bench.store.cancel("new")
    limits = ClaimLimits(10, 10, 10, replay=2, per_host=8, per_endpoint=8)
    assert [entry.job_id for entry in take(bench, limits)] == ["new", "old_0", "old_1"]
    one = ClaimLimits(10, 10, 10, replay=9, per_host=4, per_endpoint=8)
    assert take(bench, one) == []  # replayed events get half of a host's slots


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (ReplayQuery(0), {"a", "b", "failed"}),
        (ReplayQuery(0, failed_only=True), {"failed"}),
        (ReplayQuery(0, url=OTHER), {"b"}),
        (ReplayQuery(0, url=OTHER, tenant="acme"), set()),
        (ReplayQuery(0, job_id="a"), {"a"}),
        (ReplayQuery(2**52), set()),
        (ReplayQuery(0, until_ms=1), set()),
    ],
)
def test_a_query_selects_events(bench: Any, query: ReplayQuery, expected: set[str]) -> None:
    end(bench, "a")
    end(bench, "b", OTHER)
    end(bench, "failed", delivered=False)
    assert replay(bench, query) == len(expected)
    assert {entry.job_id for entry in take(bench)} == expected
    assert bench.store.counts().dead_letters == (0 if "failed" in expected else 1)


def test_pages_hold_every_event_once_also_if_many_have_one_time(
    bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batchmill.producer.store.replay._PAGE_EVENTS", 2)
    for number in range(7):
        bench.redis.zadd(keys.SETTLED_EVENTS, {end(bench, f"j{number}"): 10 + number // 3})
    pages = list(replay_events(bench, EVERYTHING))
    assert [page.num_queued for page in pages] == [3, 3, 1]
    assert [page.after_ms for page in pages] == [10, 11, None]
    assert len(take(bench)) == 7


def test_events_that_are_gone_are_named_and_a_disabled_endpoint_is_left_alone(bench: Any) -> None:
    gone, kept = end(bench, "gone"), end(bench, "kept", OTHER)
    bench.redis.delete(keys.event(gone))
    Endpoints(bench.store).disable(OTHER)
    [page] = replay_events(bench, EVERYTHING)
    assert (page.gone, page.num_disabled, page.num_queued) == ((gone,), 1, 0)
    event = Deliveries(bench.store).event(kept)
    assert event is not None
    assert event.state == "delivered"


def test_a_full_outbox_holds_a_replay_back(bench: Any) -> None:
    end(bench, "old")
    bench.submit("new", webhook=HOOK)
    bench.store.cancel("new")
    num_waits = 0

    def wait() -> None:
        nonlocal num_waits
        num_waits += 1
        for entry in take(bench):
            outcome = DeliveryOutcome.DELIVERED
            bench.store.outbox_settle(entry.event_id, fence=entry.fence, outcome=outcome)

    query = ReplayQuery(0, job_id="old")
    pages = replay_events(bench, query, max_waiting=1, wait=wait)
    assert sum(page.num_queued for page in pages) == 1
    assert num_waits == 1


def test_a_forgotten_job_cannot_be_replayed(bench: Any) -> None:
    end(bench, "j")
    bench.store.run(forget("j"))
    [page] = replay_events(bench, EVERYTHING)
    assert (page.num_queued, page.gone) == (0, ())


def test_old_entries_leave_the_list_of_settled_events(bench: Any) -> None:
    bench.redis.zadd(keys.SETTLED_EVENTS, {"evt_old": 1, end(bench, "j"): 2**50})
    bench.store.outbox_repair(0)
    assert bench.redis.zcard(keys.SETTLED_EVENTS) == 1
