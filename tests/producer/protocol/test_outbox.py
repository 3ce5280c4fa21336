"""Webhook events: claimed like jobs, settled once, the same bytes in every attempt."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from batchmill.producer.protocol import keys
from batchmill.producer.protocol.outbox import (
    DeliveryOutcome,
    OutboxEntry,
    RedeliverStatus,
    endpoint_of,
)
from batchmill.producer.protocol.records import DeadLetterKind
from batchmill.producer.protocol.replies import WriteStatus

from ...support.outbox import due_ms, make_due

URL = "https://example.com/hook"


def take(bench: Any, *, lease_ms: int = 60_000, limit: int = 10) -> list[OutboxEntry]:
    entries: list[OutboxEntry]
    entries = bench.store.outbox_claim(owner="deliverer", limit=limit, lease_ms=lease_ms)
    return entries


def settle(bench: Any, entry: OutboxEntry, outcome: DeliveryOutcome, **more: Any) -> WriteStatus:
    status: WriteStatus
    status = bench.store.outbox_settle(entry.event_id, fence=entry.fence, outcome=outcome, **more)
    return status


@pytest.fixture
def ended(bench: Any) -> Any:
    """Return a store with one pending event."""
    bench.submit("j", webhook=URL)
    bench.store.cancel("j")
    return bench


def test_an_event_is_handed_to_one_deliverer(ended: Any) -> None:
    with ThreadPoolExecutor(5) as threads:
        taken = list(threads.map(lambda _: take(ended), range(5)))
    [entry] = [entry for entries in taken for entry in entries]
    assert (entry.event_id, entry.type) == ("evt_j_cancelled", "generation.cancelled")
    assert (entry.job_id, entry.url, entry.attempt, entry.body) == ("j", URL, 1, None)
    assert entry.created_at_ms == ended.store.load("j").finished_at_ms


def test_an_event_id_contains_no_dot(ended: Any) -> None:
    assert "." not in take(ended)[0].event_id


def test_the_body_is_written_once(ended: Any) -> None:
    [entry] = take(ended, lease_ms=0)
    assert ended.store.outbox_set_body_once(entry.event_id, b'{"a":1}') == b'{"a":1}'
    assert ended.store.outbox_set_body_once(entry.event_id, b'{"a":2}') == b'{"a":1}'
    assert take(ended)[0].body == b'{"a":1}'


def test_an_event_whose_deliverer_died_is_due_again_under_a_new_fence(ended: Any) -> None:
    [first] = take(ended, lease_ms=0)
    [second] = take(ended, lease_ms=60_000)
    assert (second.event_id, second.attempt) == (first.event_id, 2)
    assert settle(ended, first, DeliveryOutcome.DELIVERED) is WriteStatus.FENCED
    assert settle(ended, second, DeliveryOutcome.DELIVERED) is WriteStatus.OK


def test_a_delivered_event_is_kept_for_a_while_and_not_sent_again(ended: Any) -> None:
    [entry] = take(ended)
    assert settle(ended, entry, DeliveryOutcome.DELIVERED, http_status=204) is WriteStatus.OK
    assert settle(ended, entry, DeliveryOutcome.DELIVERED) is WriteStatus.FENCED
    assert take(ended, lease_ms=0) == []
    assert 0 < ended.redis.ttl(keys.event(entry.event_id)) <= keys.EVENT_TTL_S
    assert ended.store.counts().totals["webhook_delivered"] == 1


def test_a_failed_attempt_is_due_after_its_delay(ended: Any) -> None:
    [entry] = take(ended)
    settle(ended, entry, DeliveryOutcome.RETRY, retry_in_ms=60_000, http_status=500, reason="500")
    assert take(ended) == []
    due = due_ms(ended.redis, entry.event_id)
    assert due == pytest.approx(entry.created_at_ms + 60_000, abs=10_000)
    make_due(ended.redis, entry.event_id)
    assert take(ended)[0].attempt == 2


@pytest.mark.parametrize("outcome", [DeliveryOutcome.EXHAUSTED, DeliveryOutcome.DISABLED])
def test_a_delivery_that_is_given_up_leaves_a_dead_letter(
    ended: Any, outcome: DeliveryOutcome
) -> None:
    [entry] = take(ended)
    settle(ended, entry, outcome, http_status=410, reason="gone")
    assert ended.redis.zcard(keys.OUTBOX) == 0
    [letter] = ended.store.dead_letters()
    assert (letter.kind, letter.id) == (DeadLetterKind.WEBHOOK, entry.event_id)
    assert (letter.reason, letter.payload, letter.source) == (outcome.value, b"gone", URL)


def test_redelivery_sends_the_same_event_again(ended: Any) -> None:
    [entry] = take(ended)
    assert ended.store.outbox_redeliver(entry.event_id) is RedeliverStatus.PENDING
    ended.store.outbox_set_body_once(entry.event_id, b"{}")
    settle(ended, entry, DeliveryOutcome.EXHAUSTED)
    assert ended.store.outbox_redeliver(entry.event_id) is RedeliverStatus.OK
    assert ended.store.counts().dead_letters == 0
    [again] = take(ended)
    assert (again.event_id, again.body, again.attempt) == (entry.event_id, b"{}", 1)
    assert again.fence != entry.fence
    assert ended.store.outbox_redeliver("evt_unknown_failed") is RedeliverStatus.UNKNOWN


def test_events_are_taken_oldest_first_up_to_the_limit(bench: Any) -> None:
    for number in range(5):
        bench.submit(f"j{number}", webhook=URL)
        bench.store.cancel(f"j{number}")
        make_due(bench.redis, f"evt_j{number}_cancelled", 100 - number)
    assert [entry.job_id for entry in take(bench, limit=2)] == ["j4", "j3"]


def test_an_event_deleted_by_hand_does_not_stop_the_outbox(ended: Any) -> None:
    ended.redis.zadd(keys.OUTBOX, {"ghost": 0})
    ended.redis.zadd(keys.due_events("live", endpoint_of(URL)), {"ghost": 0})
    assert [entry.event_id for entry in take(ended)] == ["evt_j_cancelled"]
    assert ended.redis.zscore(keys.OUTBOX, "ghost") is None
    assert ended.store.outbox_set_body_once("ghost", b"x") == b"x"
    assert not ended.redis.exists(keys.event("ghost"))
