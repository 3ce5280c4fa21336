"""The webhook events of a job, and endpoints that want none."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from redis.asyncio import Redis as AsyncRedis

from batchmill.producer import AsyncSeenEvents, SeenEvents
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.outbox import DeliveryOutcome, OutboxEntry, RedeliverStatus
from batchmill.producer.protocol.replies import HeldJob, JobState, ReleaseCause, TokenWrite
from batchmill.producer.store.deliveries import Deliveries
from batchmill.producer.store.endpoints import Endpoints

URL = "https://Example.com/hook?token=1"
ENDPOINT = "https://example.com/hook?token=1"
ENDPOINT_KEY = keys.endpoint(f"default {ENDPOINT}")
HOUR_MS = 3_600_000


def take(bench: Any) -> list[OutboxEntry]:
    entries: list[OutboxEntry]
    entries = bench.store.outbox_claim(owner="deliverer", limit=10, lease_ms=60_000)
    return entries


def types(bench: Any) -> list[str]:
    return [entry.type.removeprefix("generation.") for entry in take(bench)]


def start(bench: Any, job_id: str = "j", events: str = "") -> str:
    bench.submit(job_id, webhook=URL, webhook_events=events)
    fence: str = bench.store.claim(job_id, owner="w", lease_ms=60_000, identity="i").fence
    return fence


def write(bench: Any, fence: str, position: int, num_tokens: int, job_id: str = "j") -> None:
    tokens = list(range(num_tokens))
    bench.store.checkpoint([TokenWrite(job_id, fence, position, tokens)], lease_ms=60_000)


def settle(bench: Any, entry: OutboxEntry, outcome: DeliveryOutcome, status: int | None) -> None:
    bench.store.outbox_settle(
        entry.event_id,
        fence=entry.fence,
        outcome=outcome,
        retry_in_ms=0,
        http_status=status,
        reason="timeout" if status is None else f"http_{status}",
        duration_ms=12,
        is_receiver_fault=outcome is not DeliveryOutcome.DELIVERED,
    )


def test_without_a_filter_a_job_sends_only_its_end(bench: Any) -> None:
    fence = start(bench)
    write(bench, fence, 0, 5)
    assert types(bench) == []
    bench.store.complete("j", fence=fence, state=JobState.COMPLETED, result="{}")
    assert types(bench) == ["completed"]


def test_an_end_that_was_not_asked_for_sends_no_event(bench: Any) -> None:
    fence = start(bench, events="failed")
    bench.store.complete("j", fence=fence, state=JobState.COMPLETED, result="{}")
    assert types(bench) == []


def test_the_start_is_sent_once_however_often_a_job_is_claimed(bench: Any) -> None:
    fence = start(bench, events="started")
    assert [entry.event_id for entry in take(bench)] == ["evt_j_started"]
    bench.store.release([HeldJob("j", fence)], cause=ReleaseCause.DRAIN)
    bench.store.claim("j", owner="v", lease_ms=60_000, identity="i")
    assert take(bench) == []


def test_output_reports_the_tokens_so_far_at_most_every_five_seconds(bench: Any) -> None:
    fence = start(bench, events="output")
    write(bench, fence, 0, 3)
    [first] = take(bench)
    assert (first.event_id, first.type, first.num_tokens) == (
        "evt_j_output_1", "generation.output", 3,
    )  # fmt: skip
    settle(bench, first, DeliveryOutcome.DELIVERED, 200)
    write(bench, fence, 3, 2)
    assert take(bench) == []
    due_ms = int(bench.redis.hget(keys.job("j"), "output_due_ms"))
    assert due_ms - first.created_at_ms == 5000
    bench.redis.hset(keys.job("j"), "output_due_ms", 0)
    write(bench, fence, 5, 1)
    [second] = take(bench)
    assert (second.event_id, second.num_tokens) == ("evt_j_output_2", 6)


def test_a_lease_renewed_without_a_token_sends_no_event(bench: Any) -> None:
    fence = start(bench, events="output")
    write(bench, fence, 0, 0)
    assert take(bench) == []


def test_one_output_event_is_pending_at_a_time_and_the_end_replaces_it(bench: Any) -> None:
    fence = start(bench, events="output,completed")
    write(bench, fence, 0, 3)
    bench.redis.hset(keys.job("j"), "output_due_ms", 0)
    write(bench, fence, 3, 3)
    assert bench.redis.zcard(keys.OUTBOX) == 1
    bench.store.complete("j", fence=fence, state=JobState.COMPLETED, result="{}")
    assert types(bench) == ["completed"]
    event = Deliveries(bench.store).event("evt_j_output_1")
    assert event is not None
    assert event.state == "superseded"


def test_every_event_names_its_secret(bench: Any) -> None:
    bench.submit("j", webhook=URL, webhook_secret="billing")
    bench.store.cancel("j")
    assert [entry.secret_name for entry in take(bench)] == ["billing"]


def test_gone_disables_the_endpoint_for_later_events_until_it_is_enabled(bench: Any) -> None:
    deliveries, endpoints = Deliveries(bench.store), Endpoints(bench.store)
    for job_id in ("a", "b"):
        bench.submit(job_id, webhook=URL)
        bench.store.cancel(job_id)
        for entry in take(bench):
            settle(bench, entry, DeliveryOutcome.DISABLED, 410)
    [disabled] = endpoints.disabled()
    assert (disabled.url, disabled.disabled_reason) == (ENDPOINT, "gone")
    untried = deliveries.event("evt_b_cancelled")
    assert untried is not None
    assert (untried.state, untried.log, untried.attempts) == ("disabled", (), 0)
    assert bench.store.outbox_redeliver("evt_b_cancelled") is RedeliverStatus.DISABLED

    assert endpoints.enable(URL)
    assert not endpoints.enable(ENDPOINT)
    assert endpoints.disabled() == []
    assert endpoints.redeliver_all("https://example.com/other") == 0
    assert endpoints.redeliver_all(ENDPOINT, tenant="other") == 0
    assert endpoints.redeliver_all(ENDPOINT) == 2
    assert sorted(entry.job_id for entry in take(bench)) == ["a", "b"]


@pytest.mark.parametrize(
    ("url", "tenant"),
    [
        ("https://example.com/other?token=1", "default"),
        ("https://other.example/hook?token=1", "default"),
        ("http://example.com/hook?token=1", "default"),
        ("https://example.com/hook?token=2", "default"),
        ("https://example.com/hook", "default"),
        (URL, "another"),
    ],
)
def test_a_410_from_one_endpoint_drops_no_event_of_another(
    bench: Any, url: str, tenant: str
) -> None:
    bench.submit("gone", webhook=URL)
    bench.store.cancel("gone")
    [entry] = take(bench)
    settle(bench, entry, DeliveryOutcome.DISABLED, 410)
    bench.submit("j", webhook=url, tenant=tenant)
    bench.store.cancel("j")
    assert types(bench) == ["cancelled"]


@pytest.mark.parametrize(("hours", "is_disabled"), [(119, False), (121, True)])
def test_endpoint_without_a_success_for_120_hours_is_disabled(
    bench: Any, hours: int, is_disabled: bool
) -> None:
    bench.submit("j", webhook=URL)
    bench.store.cancel("j")
    [entry] = take(bench)
    settle(bench, entry, DeliveryOutcome.RETRY, 500)
    bench.redis.hincrby(ENDPOINT_KEY, "failing_since_ms", -hours * HOUR_MS)
    [entry] = take(bench)
    settle(bench, entry, DeliveryOutcome.RETRY, None)
    deliveries = Deliveries(bench.store)
    assert [e.disabled_reason for e in Endpoints(bench.store).disabled()] == (
        ["no_success_for_120_hours"] if is_disabled else []
    )
    event = deliveries.event(entry.event_id)
    assert event is not None
    assert event.state == ("disabled" if is_disabled else "pending")
    assert (bench.store.dead_letter(entry.event_id) is not None) is is_disabled


def test_a_success_resets_the_failures_of_the_endpoint(bench: Any) -> None:
    bench.submit("j", webhook=URL)
    bench.store.cancel("j")
    [entry] = take(bench)
    settle(bench, entry, DeliveryOutcome.RETRY, 500)
    [entry] = take(bench)
    settle(bench, entry, DeliveryOutcome.DELIVERED, 200)
    assert not bench.redis.hexists(ENDPOINT_KEY, "failing_since_ms")


def test_attempts_are_logged_with_time_status_and_duration(bench: Any) -> None:
    bench.submit("j", webhook=URL)
    bench.store.cancel("j")
    for status in (500, None, 200):
        [entry] = take(bench)
        outcome = DeliveryOutcome.DELIVERED if status == 200 else DeliveryOutcome.RETRY
        settle(bench, entry, outcome, status)
        settle(bench, entry, outcome, status)  # as a connection repeats it after a lost reply
    event = Deliveries(bench.store).event(entry.event_id)
    assert event is not None
    assert [(a.http_status, a.reason, a.duration_ms) for a in event.log] == [
        (500, "http_500", 12),
        (None, "timeout", 12),
        (200, "http_200", 12),
    ]
    assert event.created_at_ms <= event.log[0].at_ms <= event.log[-1].at_ms
    assert (event.attempts, event.due_at_ms) == (3, None)


def test_log_keeps_the_last_twenty_attempts(bench: Any) -> None:
    bench.submit("j", webhook=URL)
    bench.store.cancel("j")
    for status in range(500, 525):
        [entry] = take(bench)
        settle(bench, entry, DeliveryOutcome.RETRY, status)
    event = Deliveries(bench.store).event(entry.event_id)
    assert event is not None
    assert [attempt.http_status for attempt in event.log] == list(range(505, 525))


def test_a_receiver_remembers_an_event_for_a_week(bench: Any) -> None:
    seen = SeenEvents(bench.redis)
    assert seen.first_time("evt_1")
    assert not seen.first_time("evt_1")
    assert not SeenEvents(bench.redis).first_time("evt_1")
    assert SeenEvents(bench.redis, prefix="other:").first_time("evt_1")
    assert 7 * 86400 - 60 < bench.redis.ttl("batchmill-seen:evt_1") <= 7 * 86400
    seen.forget("evt_1")
    assert seen.first_time("evt_1")


def test_an_asyncio_receiver_shares_the_remembered_events(bench: Any, redis_url: str) -> None:
    async def receive() -> None:
        async with AsyncRedis.from_url(redis_url) as client:
            seen = AsyncSeenEvents(client, ttl_s=60)
            assert await seen.first_time("evt_1")
            assert not await seen.first_time("evt_1")
            await seen.forget("evt_1")
            assert await seen.first_time("evt_1")

    asyncio.run(receive())
    assert not SeenEvents(bench.redis).first_time("evt_1")
    [key] = bench.redis.keys("*evt_1")
    assert 0 < bench.redis.ttl(key) <= 60
