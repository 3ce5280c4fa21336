"""Operators' verbs of both clients: pausing, and sending webhooks again."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from batchmill.producer import Client, InvalidQuery, Pause, PauseKind, ReplayCounts
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.outbox import DeliveryOutcome

QUEUE = keys.queue_name("demo", "low")
HOOK = "https://example.com/hook?x=1"
TARGETS: list[tuple[dict[str, str], PauseKind, str]] = [
    ({"queue": QUEUE}, PauseKind.QUEUE, QUEUE),
    ({"queue": "demo.low"}, PauseKind.QUEUE, QUEUE),
    ({"tenant": "acme"}, PauseKind.TENANT, "acme"),
    ({"endpoint": HOOK}, PauseKind.ENDPOINT, f"default {HOOK}"),
    ({"endpoint": HOOK, "tenant": "acme"}, PauseKind.ENDPOINT, f"acme {HOOK}"),
]


@pytest.mark.parametrize(("target", "kind", "name"), TARGETS)
def test_what_is_paused_is_listed_until_it_is_resumed(
    client: Client, target: dict[str, Any], kind: PauseKind, name: str
) -> None:
    assert client.pause(**target, by="ann", reason="new weights", refuses=True)
    assert not client.pause(**target, by="bob")
    (pause,) = client.pauses()
    assert pause == Pause(kind, name, pause.since_ms, by="bob")
    assert client.resume(**target)
    assert not client.resume(**target)
    assert client.pauses() == []


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ({}, "give a queue, a tenant, or an endpoint"),
        ({"queue": QUEUE, "tenant": "acme"}, "give a queue, a tenant, or an endpoint"),
        ({"queue": QUEUE, "endpoint": HOOK}, "give a queue, a tenant, or an endpoint"),
        ({"queue": "batchmill.demo.urgent"}, "queue is 'batchmill.demo.urgent'"),
        ({"queue": "demo"}, "queue is 'demo'"),
        ({"tenant": "a tenant"}, "tenant is 'a tenant'"),
        ({"tenant": "a tenant", "endpoint": HOOK}, "tenant is 'a tenant'"),
        ({"endpoint": "example.com/hook"}, "endpoint is 'example.com/hook'"),
    ],
)
def test_a_target_that_is_not_clear_is_refused(
    client: Client, target: dict[str, Any], message: str
) -> None:
    for verb in (client.pause, client.resume):
        with pytest.raises(InvalidQuery, match=message):
            verb(**target)


def settle_event(bench: Any, job_id: str, outcome: DeliveryOutcome) -> None:
    bench.submit(job_id, webhook=HOOK)
    bench.store.cancel(job_id)
    [entry] = bench.store.outbox_claim(owner="d", limit=1, lease_ms=60_000)
    bench.store.outbox_settle(entry.event_id, fence=entry.fence, outcome=outcome)


def test_webhooks_are_replayed_since_a_time_or_an_age(client: Client, bench: Any) -> None:
    settle_event(bench, "good", DeliveryOutcome.DELIVERED)
    settle_event(bench, "bad", DeliveryOutcome.EXHAUSTED)
    seen: list[ReplayCounts] = []

    failed = client.replay_webhooks(
        timedelta(hours=1), failed_only=True, endpoint=HOOK, on_progress=seen.append
    )
    every = client.replay_webhooks(datetime.now(UTC) - timedelta(hours=1))

    assert seen == [failed] == [ReplayCounts(num_replayed=1)]
    assert every == ReplayCounts(num_replayed=1)  # the other one waits for its delivery
    assert client.replay_webhooks(timedelta(0)) == ReplayCounts()
    assert client.replay_webhooks(timedelta(hours=1), tenant="acme", endpoint=HOOK).gone == ()


def test_an_interrupted_replay_knows_where_it_continues(
    client: Client, bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batchmill.producer.store.replay._PAGE_EVENTS", 1)
    for number in (1, 2):
        settle_event(bench, f"j{number}", DeliveryOutcome.DELIVERED)
        bench.redis.zadd(keys.SETTLED_EVENTS, {f"evt_j{number}_cancelled": number * 1000})

    seen: list[ReplayCounts] = []

    def interrupt(counts: ReplayCounts) -> None:
        seen.append(counts)
        raise InterruptedError

    with pytest.raises(InterruptedError):
        client.replay_webhooks(datetime.fromtimestamp(0, UTC), on_progress=interrupt)
    (reached,) = seen
    assert reached.num_replayed == 1
    assert reached.continue_from is not None
    assert client.replay_webhooks(reached.continue_from).num_replayed == 1


@pytest.mark.parametrize("since", [datetime(2026, 1, 1), timedelta(seconds=-1)])  # noqa: DTZ001
def test_a_time_without_a_zone_is_refused(client: Client, since: datetime | timedelta) -> None:
    with pytest.raises(InvalidQuery, match="since is"):
        client.replay_webhooks(since)


def test_a_time_that_has_yet_to_come_is_refused(client: Client) -> None:
    since = datetime.now(UTC) + timedelta(hours=1)
    with pytest.raises(InvalidQuery, match="has yet to come: the broker's clock says"):
        client.replay_webhooks(since)
