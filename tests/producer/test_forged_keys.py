"""Keys that no batchmill wrote: what they stop, and what they do not."""

from __future__ import annotations

from typing import Any

import pytest
from redis.exceptions import ResponseError

from batchmill.producer import keys
from batchmill.producer.answers import CompleteStatus, JobState


def test_forged_events_become_dead_letters_and_the_others_are_claimed(bench: Any) -> None:
    bench.submit("j", webhook="https://example.com/hook")
    bench.store.cancel("j")
    bench.redis.set(keys.event("a-string"), "no event")
    bench.redis.hset(keys.event("half"), "type", "generation.completed")
    bench.redis.hset(
        keys.event("counted"),
        mapping={
            **{"type": "t", "job_id": "j", "url": "https://e", "created_at_ms": 1},
            "attempts": "many",
        },
    )
    for name in ("a-string", "half", "counted", "of-nothing"):
        bench.redis.zadd(keys.OUTBOX, {name: 1})

    claimed = bench.store.outbox_claim(owner="d", limit=10, lease_ms=60_000)

    assert [entry.event_id for entry in claimed] == ["evt_j_cancelled"]
    reasons = {letter.id: letter.reason for letter in bench.store.dead_letters()}
    assert reasons == dict.fromkeys(("a-string", "half", "counted"), "unusable_event")
    assert bench.redis.zrange(keys.OUTBOX, 0, -1) == [b"evt_j_cancelled"]


def test_an_event_key_that_is_in_use_does_not_keep_a_job_from_its_end(bench: Any) -> None:
    claim = bench.started("j", webhook="https://example.com/hook")
    bench.redis.set(keys.event("evt_j_completed"), "no event")

    status = bench.store.complete("j", fence=claim.fence, state=JobState.COMPLETED, result="{}")

    assert status is CompleteStatus.OK
    (entry,) = bench.store.outbox_claim(owner="d", limit=10, lease_ms=60_000)
    assert entry.event_id == "evt_j_completed"


def test_a_fault_that_is_not_the_jobs_own_is_an_error_and_no_jobs_end(bench: Any) -> None:
    claim = bench.started("j")
    bench.redis.rename(keys.TOTALS, "elsewhere")
    bench.redis.set(keys.TOTALS, "no counters")

    with pytest.raises(ResponseError, match="WRONGTYPE"):
        bench.store.complete("j", fence=claim.fence, state=JobState.COMPLETED, result="{}")

    assert bench.store.dead_letters() == []
    bench.redis.rename("elsewhere", keys.TOTALS)
