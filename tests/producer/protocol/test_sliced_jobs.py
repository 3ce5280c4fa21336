"""Jobs that go back into their queue after a time slice."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from batchmill.producer.protocol import keys
from batchmill.producer.protocol.pauses import PauseKind
from batchmill.producer.protocol.replies import (
    Claim,
    ClaimRefusal,
    HeldJob,
    JobState,
    ReleaseCause,
    ReleaseStatus,
    TokenWrite,
)
from batchmill.producer.store.pauses import Pauses

from ...support.session_connections import SessionConnections

QUEUE = keys.queue_name("demo", "normal")
HOME = keys.new_session("home@host")


@pytest.fixture
def sessions(bench: Any) -> Iterator[SessionConnections]:
    """The worker that has had the job is connected."""
    connections = SessionConnections(bench.redis)
    connections.connect(HOME)
    yield connections
    connections.close()


def slice_job(bench: Any, job_id: str = "long") -> None:
    """Let a worker run a job for one token, and end its slice."""
    bench.submit(job_id)
    bench.take_announcement()
    claim = bench.claim(job_id, session=HOME)
    bench.store.checkpoint([TokenWrite(job_id, claim.fence, 0, [7])], lease_ms=60_000)
    held = [HeldJob(job_id, claim.fence)]
    assert bench.store.release(held, cause=ReleaseCause.SLICED) == [ReleaseStatus.REQUEUED]
    assert bench.store.release(held, cause=ReleaseCause.SLICED) == [ReleaseStatus.FENCED]


def test_a_sliced_job_waits_behind_those_that_wait_already(bench: Any) -> None:
    bench.redis.set(keys.WINDOW, 1)
    bench.submit("long")
    bench.take_announcement()
    claim = bench.claim("long")
    for job_id in ("a", "b"):
        bench.submit(job_id)
    bench.store.release([HeldJob("long", claim.fence)], cause=ReleaseCause.SLICED)
    bench.submit("later")

    assert [bench.take_next() for _ in range(5)] == ["a", "b", "long", "later", None]


def test_a_slice_costs_neither_tokens_nor_a_charge(bench: Any) -> None:
    before = dict(bench.redis.hgetall(keys.USAGE))
    slice_job(bench)
    claim = bench.claim("long")
    assert (claim.token_ids, claim.attempts, claim.suspect) == ([7], 2, 0)
    assert [attempt.cause for attempt in claim.history] == ["sliced"]
    bench.store.complete("long", fence=claim.fence, state=JobState.COMPLETED, result="{}")
    assert bench.redis.hgetall(keys.USAGE) == before


def test_an_engine_of_another_identity_leaves_the_job_to_its_worker(
    bench: Any, sessions: SessionConnections
) -> None:
    slice_job(bench)
    bench.take_announcement()

    refusal = bench.store.claim("long", owner="other", lease_ms=60_000, identity="another")

    assert refusal is ClaimRefusal.OTHER_ENGINE

    [message] = bench.redis.lrange(keys.handed(HOME), 0, -1)
    assert json.loads(message)["headers"]["id"] == "long"
    assert bench.claim("long", session=HOME).token_ids == [7]


def test_any_engine_may_begin_the_job_again_once_its_worker_is_gone(bench: Any) -> None:
    slice_job(bench)
    assert bench.claim("long", identity="another").token_ids == []


def test_a_sliced_job_of_a_paused_tenant_waits_for_the_end_of_the_pause(bench: Any) -> None:
    bench.submit("long")
    bench.take_announcement()
    claim = bench.claim("long")
    Pauses(bench.store).pause(PauseKind.TENANT, keys.DEFAULT_TENANT)
    bench.store.release([HeldJob("long", claim.fence)], cause=ReleaseCause.SLICED)
    assert bench.announced() == []
    Pauses(bench.store).resume(PauseKind.TENANT, keys.DEFAULT_TENANT)
    assert bench.announced() == ["long"]


@pytest.mark.parametrize("window", [8, 1], ids=["announced", "backlog"])
def test_a_job_that_gave_way_is_not_taken_before_those_that_it_gave_way_to(
    bench: Any, sessions: SessionConnections, window: int
) -> None:
    bench.redis.set(keys.WINDOW, window)
    bench.submit("long", prefix="long")
    bench.take_announcement()
    claim = bench.claim("long", session=HOME)
    bench.submit("short", prefix="short")
    bench.store.release([HeldJob("long", claim.fence)], cause=ReleaseCause.SLICED)

    order = []
    while message := bench.redis.rpop(keys.handed(HOME)) or bench.take_announcement():
        job_id = json.loads(message)["headers"]["id"]
        found = bench.store.claim(
            job_id, owner="w", lease_ms=60_000, identity="model-1", session=HOME, prefixes=["long"]
        )
        if isinstance(found, Claim):
            order.append(job_id)

    assert order == ["short", "long"]
