"""Paused queues, tenants and endpoints: what waits, what goes on, and the order afterwards."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from batchmill.producer import Client, QueueFull, QueuePaused
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.outbox import claim_limits, endpoint_of
from batchmill.producer.protocol.pauses import PauseKind
from batchmill.producer.protocol.replies import (
    ClaimRefusal,
    HeldJob,
    JobState,
    ReleaseCause,
    ReleaseStatus,
)
from batchmill.producer.store.endpoints import Endpoints
from batchmill.producer.store.pauses import Pauses
from batchmill.producer.store.tenants import set_window

QUEUE = keys.queue_name("demo", "normal")
HOOK = "https://example.com/hook"
QUEUE_PAUSE, TENANT_PAUSE = (PauseKind.QUEUE, QUEUE), (PauseKind.TENANT, "acme")


@pytest.fixture
def pauses(bench: Any) -> Pauses:
    return Pauses(bench.store)


def announced(bench: Any) -> list[str]:
    """Return the announced jobs in the order in which workers get them."""
    ids = []
    while (job_id := next_announced(bench)) is not None:
        ids.append(job_id)
    return ids


def next_announced(bench: Any) -> str | None:
    message = bench.redis.rpop(keys.announced(QUEUE))
    return None if message is None else str(json.loads(message)["headers"]["id"])


def refusal(bench: Any, job_id: str) -> object:
    return bench.store.claim(job_id, owner="w", lease_ms=60_000, identity="i")


@pytest.mark.parametrize("place", [QUEUE_PAUSE, TENANT_PAUSE])
def test_jobs_of_a_paused_place_wait_and_are_announced_in_their_order_when_it_is_resumed(
    bench: Any, pauses: Pauses, place: tuple[PauseKind, str]
) -> None:
    set_window(bench.store, 2)
    for number in range(2):
        bench.submit(f"before_{number}", tenant="acme")
    assert pauses.pause(*place, by="kim", reason="a new model")
    for number in range(3):
        bench.submit(f"after_{number}", tenant="acme")
    # Workers may hold announcements of before; they drop them, and no job is lost.
    assert announced(bench) == ["before_0", "before_1"]
    for number in range(2):
        assert refusal(bench, f"before_{number}") is ClaimRefusal.PAUSED
    bench.store.sweep(reannounce_grace_ms=0)
    assert announced(bench) == []
    [pause] = pauses.all()
    assert (pause.by, pause.reason, pause.refuses) == ("kim", "a new model", False)
    assert "is paused since 20" in pause.describe()

    assert pauses.resume(*place)
    assert not pauses.resume(*place)
    order = []
    while ids := announced(bench):
        order += ids
        for job_id in ids:
            bench.claim(job_id)
    assert order == ["before_0", "before_1", "after_0", "after_1", "after_2"]


def test_a_paused_tenant_holds_up_no_other_and_takes_turns_again_when_it_is_resumed(
    bench: Any, pauses: Pauses
) -> None:
    set_window(bench.store, 1)
    bench.submit("first", tenant="other")
    for number in range(4):
        for tenant in ("acme", "other"):
            bench.submit(f"{tenant}_{number}", tenant=tenant, cost=10)
    pauses.pause(*TENANT_PAUSE)
    assert next_announced(bench) == "first"
    order: list[Any] = ["first"]
    for _ in range(2):
        bench.claim(order[-1])
        order.append(next_announced(bench))
    assert order == ["first", "other_0", "other_1"]
    pauses.resume(*TENANT_PAUSE)
    for _ in range(4):
        bench.claim(order[-1])
        order.append(next_announced(bench))
    assert {"acme_0", "other_2"} <= set(order[3:])


def test_a_running_job_goes_on_and_one_that_is_given_back_waits(bench: Any, pauses: Pauses) -> None:
    running, given_back = bench.started("a"), bench.started("b")
    bench.redis.delete(keys.announced(QUEUE))  # the messages of both
    pauses.pause(*QUEUE_PAUSE)
    bench.store.complete("a", fence=running.fence, state=JobState.COMPLETED, result="{}")
    held = [HeldJob("b", given_back.fence)]
    assert bench.store.release(held, cause=ReleaseCause.DRAIN) == [ReleaseStatus.REQUEUED]
    assert announced(bench) == ["b"]
    assert refusal(bench, "b") is ClaimRefusal.PAUSED
    pauses.resume(*QUEUE_PAUSE)
    assert announced(bench) == ["b"]


def test_a_paused_job_still_expires_and_can_be_cancelled(bench: Any, pauses: Pauses) -> None:
    pauses.pause(*QUEUE_PAUSE)
    bench.submit("late", ttl_ms=1)
    bench.submit("unwanted")
    while bench.store.state("late") is not JobState.EXPIRED:
        bench.store.sweep()
    bench.store.cancel("unwanted")
    assert bench.store.state("unwanted") is JobState.CANCELLED


def test_a_job_that_was_announced_before_the_pause_returns_to_its_old_place(
    bench: Any, pauses: Pauses
) -> None:
    bench.submit("behind", tenant="acme", message_priority=1)
    pauses.pause(*TENANT_PAUSE)
    bench.submit("first", tenant="acme")
    assert announced(bench) == ["behind"]
    assert refusal(bench, "behind") is ClaimRefusal.PAUSED
    pauses.resume(*TENANT_PAUSE)
    assert announced(bench) == ["first", "behind"]


def test_a_plain_celery_task_for_a_paused_queue_is_kept(bench: Any, pauses: Pauses) -> None:
    pauses.pause(*QUEUE_PAUSE, refuses=True)
    bench.store.adopt(bench.new_job("task"))
    assert refusal(bench, "task") is ClaimRefusal.PAUSED
    pauses.resume(*QUEUE_PAUSE)
    assert announced(bench) == ["task"]
    bench.claim("task")


@pytest.mark.parametrize("place", [QUEUE_PAUSE, TENANT_PAUSE])
def test_a_pause_may_refuse_jobs(
    redis_url: str, pauses: Pauses, place: tuple[PauseKind, str]
) -> None:
    pauses.pause(*place, by="kim", reason="billing", refuses=True)
    with Client(redis_url) as client:
        with pytest.raises(QueuePaused, match=r"is paused since .* by kim: billing") as caught:
            client.submit(prompt="x", tenant="acme")
        assert isinstance(caught.value, QueueFull)
        assert (caught.value.code, caught.value.retryable) == ("queue_paused", True)
        assert not pauses.pause(*place, by="kim")  # jobs may wait again
        client.submit(prompt="x", tenant="acme")


def test_events_of_a_paused_endpoint_wait_and_the_others_are_sent(
    bench: Any, pauses: Pauses
) -> None:
    place = (PauseKind.ENDPOINT, endpoint_of(HOOK))
    for name, url in (("before", HOOK), ("other", f"{HOOK}?flow=2")):
        bench.submit(name, webhook=url)
        bench.store.cancel(name)
    pauses.pause(*place)
    bench.submit("after", webhook=HOOK)
    bench.store.cancel("after")

    def take() -> list[str]:
        entries = bench.store.outbox_claim(owner="d", limit=claim_limits(9), lease_ms=60_000)
        return [entry.job_id for entry in entries]

    assert take() == ["other"]
    assert bench.store.outbox_repair(0) == (0, 0)
    assert take() == []
    assert Endpoints(bench.store).get(HOOK).num_waiting == 2
    pauses.resume(*place)
    assert take() == ["before", "after"]


@pytest.mark.parametrize("first", ["paused", "disabled"])
def test_events_of_an_endpoint_that_is_paused_and_disabled_are_given_up(
    bench: Any, pauses: Pauses, first: str
) -> None:
    bench.submit("j", webhook=HOOK)
    bench.store.cancel("j")
    steps: list[Callable[[], bool]] = [
        lambda: pauses.pause(PauseKind.ENDPOINT, endpoint_of(HOOK)),
        lambda: Endpoints(bench.store).disable(HOOK),
    ]
    for step in steps if first == "paused" else steps[::-1]:
        assert step()
    assert bench.store.outbox_claim(owner="d", limit=claim_limits(9), lease_ms=60_000) == []
    assert Endpoints(bench.store).get(HOOK).num_waiting == 0
    [letter] = bench.store.dead_letters()
    assert (letter.id, letter.reason) == ("evt_j_cancelled", "disabled")


def test_a_full_redis_accepts_every_pause(bench: Any, pauses: Pauses) -> None:
    bench.redis.config_set("maxmemory", 1)
    try:
        assert pauses.pause(*QUEUE_PAUSE)
        assert pauses.pause(*TENANT_PAUSE)
        assert not pauses.pause(*QUEUE_PAUSE, reason="longer")
    finally:
        bench.redis.config_set("maxmemory", 0)
    assert len(pauses.all()) == 2


@pytest.mark.parametrize("forged", ["a string", {"queue:" + QUEUE: "no JSON", b"\xff": b"\xff"}])
def test_forged_pauses_stop_no_script(bench: Any, pauses: Pauses, forged: Any) -> None:
    if isinstance(forged, str):
        bench.redis.set(keys.PAUSED, forged)
    else:
        bench.redis.hset(keys.PAUSED, mapping=forged)
    bench.submit("j")
    assert [pause.since_ms for pause in pauses.all()] == ([] if forged == "a string" else [0])
    pauses.pause(*QUEUE_PAUSE)
    pauses.resume(*QUEUE_PAUSE)
    assert announced(bench) == ["j"]
    bench.redis.delete(keys.PAUSED)
