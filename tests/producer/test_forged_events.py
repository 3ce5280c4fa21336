"""Webhook events that no batchmill wrote hold up no others."""

from __future__ import annotations

from typing import Any

from batchmill.producer import keys


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
