"""Which waiting events a deliverer gets: hosts and endpoints in turn, within limits, by breaker."""

from __future__ import annotations

import time
from typing import Any

import pytest

from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls.jobs import forget
from batchmill.producer.protocol.outbox import (
    Breaker,
    ClaimLimits,
    DeliveryOutcome,
    Lane,
    OutboxEntry,
    claim_limits,
    endpoint_of,
)
from batchmill.producer.protocol.scripts import script_source
from batchmill.producer.store.endpoints import Endpoints, EndpointState

from ...support.outbox import make_due

HUNG, GOOD = "https://hung.example/hook", "https://good.example/hook"
BREAKER = Breaker(failures=3, wait_ms=60_000, max_wait_ms=150_000)


def owe(bench: Any, url: str, number: int, *, tenant: str = "default") -> list[str]:
    """End jobs that owe an event each; return the ids of the events."""
    names = [f"{tenant}_{abs(hash(url)) % 10**9}_{i}" for i in range(number)]
    for name in names:
        bench.submit(name, webhook=url, tenant=tenant)
        bench.store.cancel(name)
    return [f"evt_{name}_cancelled" for name in names]


def take(bench: Any, limits: ClaimLimits) -> list[OutboxEntry]:
    entries: list[OutboxEntry]
    entries = bench.store.outbox_claim(owner="d", limit=limits, lease_ms=60_000)
    return entries


def urls(entries: list[OutboxEntry]) -> list[str]:
    return [entry.url for entry in entries]


def fail(bench: Any, entry: OutboxEntry, *, reason: str = "timeout", hold_ms: int = 0) -> None:
    bench.store.outbox_settle(
        entry.event_id,
        fence=entry.fence,
        outcome=DeliveryOutcome.RETRY,
        retry_in_ms=0,
        reason=reason,
        duration_ms=15_000,
        is_receiver_fault=True,
        hold_ms=hold_ms,
        breaker=BREAKER,
    )


def deliver(bench: Any, entry: OutboxEntry) -> None:
    bench.store.outbox_settle(
        entry.event_id,
        fence=entry.fence,
        outcome=DeliveryOutcome.DELIVERED,
        http_status=204,
        duration_ms=5,
    )


def test_a_backlog_for_one_host_holds_up_no_other(bench: Any) -> None:
    owe(bench, HUNG, 50)
    owe(bench, GOOD, 1)
    assert urls(take(bench, claim_limits(4, per_host=2))).count(GOOD) == 1


def test_a_host_gets_no_more_than_its_limit_of_all_deliverers_together(bench: Any) -> None:
    owe(bench, HUNG, 10)
    limits = claim_limits(10, per_host=3)
    first = take(bench, limits)
    assert len(first) == 3
    assert take(bench, limits) == []
    deliver(bench, first[0])
    assert len(take(bench, limits)) == 1


def test_endpoints_of_one_host_take_turns_within_their_limit(bench: Any) -> None:
    for path in ("a", "b"):
        owe(bench, f"https://shared.example/{path}", 9)
    owe(bench, "https://shared.example/a", 1, tenant="other")
    claimed = take(bench, claim_limits(100, per_host=7, per_endpoint=3))
    ids = [entry.event_id for entry in claimed]
    assert (
        sorted(urls(claimed)) == ["https://shared.example/a"] * 4 + ["https://shared.example/b"] * 3
    )
    assert sum(event_id.startswith("evt_other_") for event_id in ids) == 1


def test_claims_of_a_dead_deliverer_leave_its_slots_after_the_lease(bench: Any) -> None:
    owe(bench, HUNG, 4)
    limits = claim_limits(10, per_host=2)
    dead = bench.store.outbox_claim(owner="dead", limit=limits, lease_ms=500)
    assert (len(dead), take(bench, limits)) == (2, [])
    deadline_s = time.monotonic() + 60
    while not (taken := take(bench, limits)):
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    assert len(taken + take(bench, limits)) == 2


def test_hosts_that_may_be_slow_get_only_their_share(bench: Any) -> None:
    for number in range(6):
        owe(bench, f"https://{number}.example/", 4)
    limits = ClaimLimits(20, first=5, more=3, replay=1, per_host=4, per_endpoint=4)
    claimed = take(bench, limits)
    assert len(claimed) == 5
    assert {entry.lane for entry in claimed} == {Lane.FIRST}
    assert len(set(urls(claimed))) == 5
    assert take(bench, limits)[0].lane is Lane.FIRST  # the sixth host
    assert {entry.lane for entry in take(bench, limits)} == {Lane.MORE}
    deliver(bench, claimed[0])
    [*_, fast] = sorted(take(bench, limits), key=lambda entry: entry.lane is Lane.FAST)
    assert (fast.lane, fast.url) == (Lane.FAST, claimed[0].url)


def test_an_endpoint_that_only_fails_is_tried_with_one_event_after_the_wait(bench: Any) -> None:
    ids = owe(bench, HUNG, 6)
    endpoints = Endpoints(bench.store)
    for entry in take(bench, claim_limits(4)):
        fail(bench, entry)  # the fourth began before the breaker opened
    failing = endpoints.get(HUNG)
    assert (failing.state, failing.num_failures) == (EndpointState.FAILING, 4)
    assert (failing.num_waiting, failing.last_error) == (6, "timeout")
    assert take(bench, claim_limits(10)) == []
    owe(bench, GOOD, 1)
    assert urls(take(bench, claim_limits(10))) == [GOOD]

    bench.redis.hset(keys.endpoint(f"default {HUNG}"), "open_until_ms", 1)
    bench.redis.hset(keys.endpoint(f"default {HUNG}"), "next_at_ms", 1)
    make_turn(bench, ids[0])
    [probe] = take(bench, claim_limits(10))
    fail(bench, probe)
    again = endpoints.get(HUNG)
    assert failing.next_attempt_at_ms is not None
    assert again.next_attempt_at_ms is not None
    wait_ms = again.next_attempt_at_ms - bench.store.client.time()[0] * 1000
    assert 100_000 < wait_ms <= 121_000  # twice the first wait
    attempts = [int(bench.redis.hget(keys.event(i), "attempts")) for i in ids]
    assert sorted(attempts) == [0, 1, 1, 1, 1, 1] or sorted(attempts) == [0, 0, 1, 1, 1, 2]


def make_turn(bench: Any, event_id: str) -> None:
    """Let an endpoint have its turn now, without closing its breaker."""
    until = bench.redis.hget(keys.endpoint(f"default {HUNG}"), "open_until_ms")
    make_due(bench.redis, event_id)
    bench.redis.hset(keys.endpoint(f"default {HUNG}"), "open_until_ms", until)


def test_a_success_closes_the_breaker_for_all_waiting_events(bench: Any) -> None:
    [first, *_] = owe(bench, HUNG, 8)
    for entry in take(bench, claim_limits(3)):
        fail(bench, entry)
    bench.redis.hset(keys.endpoint(f"default {HUNG}"), "open_until_ms", 1)
    make_turn(bench, first)
    [probe] = take(bench, claim_limits(10))
    deliver(bench, probe)
    assert Endpoints(bench.store).get(HUNG).state is EndpointState.OPEN
    assert len(take(bench, claim_limits(10))) == 7


def test_a_receiver_that_asks_for_silence_gets_it(bench: Any) -> None:
    owe(bench, HUNG, 3)
    [entry] = take(bench, claim_limits(1))
    fail(bench, entry, reason="http_429", hold_ms=30_000)
    assert take(bench, claim_limits(10)) == []


def test_a_disabled_endpoint_gives_its_backlog_up_and_an_enabled_one_sends_it(bench: Any) -> None:
    ids = owe(bench, HUNG, 130)
    endpoints = Endpoints(bench.store)
    assert endpoints.disable(HUNG)
    assert not endpoints.disable(HUNG)
    assert endpoints.get(HUNG).disabled_reason == "by_operator"
    while bench.store.counts().outbox:
        assert take(bench, claim_limits(10)) == []
    assert bench.store.counts().dead_letters == len(ids)
    assert endpoints.enable(HUNG)
    assert endpoints.redeliver_all(HUNG) == len(ids)
    assert len(take(bench, claim_limits(10))) == 10


def test_an_enabled_endpoint_is_no_longer_left_alone(bench: Any) -> None:
    owe(bench, HUNG, 3)
    for entry in take(bench, claim_limits(3)):
        fail(bench, entry)
    endpoints = Endpoints(bench.store)
    endpoints.disable(HUNG)
    endpoints.enable(HUNG)
    assert len(take(bench, claim_limits(10))) == 3


def test_an_erased_event_frees_the_slot_of_its_delivery(bench: Any) -> None:
    owe(bench, HUNG, 2)
    limits = claim_limits(10, per_host=1, per_endpoint=1)
    [entry] = take(bench, limits)
    bench.store.run(forget(entry.job_id))
    [other] = take(bench, limits)
    assert other.event_id != entry.event_id


@pytest.mark.parametrize("lost", ["the queue", "the indexes"])
def test_events_whose_queue_was_deleted_are_queued_again(bench: Any, lost: str) -> None:
    ids = owe(bench, HUNG, 5)
    host = "https://hung.example"
    if lost == "the queue":
        bench.redis.set(keys.due_events("live", f"default {HUNG}"), "forged")
    else:
        bench.redis.delete(keys.FIRST_HOSTS, keys.due_endpoints("live", host))
    bench.redis.set(keys.endpoint(f"default {HUNG}"), "forged")
    bench.redis.set(keys.host_claims(host), "forged")
    bench.redis.zadd(keys.FIRST_HOSTS, {b"\xff": 1, host: 1})
    start, num_lost = bench.store.outbox_repair(0, limit=2)
    while start:
        start, number = bench.store.outbox_repair(start, limit=2)
        num_lost += number
    assert num_lost == (len(ids) if lost == "the queue" else 0)
    claimed = {entry.event_id for _ in range(3) for entry in take(bench, claim_limits(10))}
    assert claimed == set(ids)


def test_forged_scheduling_keys_do_not_keep_a_job_from_its_end(bench: Any) -> None:
    endpoint, host = f"default {HUNG}", "https://hung.example"
    for key in (
        *(keys.due_events("live", endpoint), keys.due_endpoints("live", host)),
        *(keys.endpoint(endpoint), keys.host(host), keys.host_claims(host)),
        *(keys.OUTBOX, keys.FIRST_HOSTS, keys.FAST_HOSTS),
    ):
        bench.redis.set(key, "forged")
    owe(bench, HUNG, 1)
    assert urls(take(bench, claim_limits(10))) == [HUNG]


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://Example.com", "acme https://example.com/"),
        ("HTTPS://Example.com:443/a?B=c#d", "acme https://example.com/a?B=c"),
        ("http://example.com.:80?q", "acme http://example.com/?q"),
        ("https://example.com:80/", "acme https://example.com:80/"),
        ("https://example.com.:8443/", "acme https://example.com:8443/"),
        ("https://127.0.0.1:44380/x", "acme https://127.0.0.1:44380/x"),
        ("https://[::1]:443/x/", "acme https://[::1]/x/"),
        ("no url", "acme no url"),
    ],
)
def test_scripts_and_python_name_an_endpoint_alike(bench: Any, url: str, expected: str) -> None:
    source = script_source("outbox_redeliver").split("\n-- Put a settled event back")[0]
    named = bench.redis.eval(f"{source}\nreturn lib.endpoint_of(ARGV[1], ARGV[2])", 0, url, "acme")
    assert named.decode() == endpoint_of(url, "acme") == expected
