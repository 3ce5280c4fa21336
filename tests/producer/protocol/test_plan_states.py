"""The saved state of a job's plan: who may write it, who gets it, and when it is gone."""

from __future__ import annotations

from typing import Any

from batchmill.producer.encryption.key_ring import KeyRing, new_key
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls import rewrap
from batchmill.producer.protocol.replies import (
    Claim,
    HeldJob,
    JobState,
    PlanState,
    ReleaseCause,
    WriteStatus,
)
from batchmill.producer.store.job_store import JobStore

from ..conftest import Bench

STATE = b"\x00the state of a search\xff"


def save(bench: Any, claim: Claim, state: bytes = STATE, identity: str | None = None) -> Any:
    identity = claim.identity if identity is None else identity
    [status] = bench.store.save_plans([PlanState("j", claim.fence, identity, state)])
    return status


def release(bench: Any, claim: Claim) -> None:
    bench.store.release([HeldJob("j", claim.fence)], cause=ReleaseCause.DRAIN)


def stored(bench: Any) -> Any:
    return bench.redis.hget(keys.job("j"), "plan_state")


def test_the_next_claim_gets_the_last_state_and_its_end_deletes_it(bench: Any) -> None:
    first = bench.started("j")
    assert first.plan_state == b""
    assert save(bench, first, b"an earlier state") is WriteStatus.OK
    assert save(bench, first) is WriteStatus.OK
    release(bench, first)
    second = bench.claim("j")
    assert second.plan_state == STATE
    assert save(bench, first, b"of a lost claim") is WriteStatus.FENCED
    assert save(bench, second, b"of another engine", identity="other") is WriteStatus.FENCED
    assert stored(bench) == STATE
    bench.store.complete("j", fence=second.fence, state=JobState.COMPLETED, result="{}")
    assert stored(bench) is None


def test_a_state_of_another_model_is_discarded_at_the_claim(bench: Any) -> None:
    first = bench.started("j")
    save(bench, first)
    release(bench, first)
    assert bench.claim("j", identity="model-2").plan_state == b""
    assert stored(bench) is None


def test_a_state_that_an_older_worker_left_of_another_model_is_discarded(bench: Any) -> None:
    first = bench.started("j")
    save(bench, first)
    release(bench, first)
    second = bench.claim("j")
    # The claim of an older worker leaves the state as it is, and names its own model.
    bench.redis.hset(keys.job("j"), "identity", "model-2")
    release(bench, second)
    assert bench.claim("j", identity="model-2").plan_state == b""
    assert stored(bench) is None


def test_a_saved_state_forgives_lost_workers(bench: Any) -> None:
    claim = bench.started("j")
    bench.redis.hset(keys.job("j"), "lost_leases", 3)
    save(bench, claim)
    assert bench.redis.hget(keys.job("j"), "lost_leases") is None


def test_the_record_names_the_key_of_a_saved_state_after_a_change_of_keys(bench: Any) -> None:
    old, new = new_key("old"), new_key("new")
    claim = Bench(JobStore(bench.redis, key_ring=KeyRing([old]))).started("j")
    newer = JobStore(bench.redis, key_ring=KeyRing([new, old]))
    newer.save_plans([PlanState("j", claim.fence, claim.identity, STATE)])
    newer.run(rewrap.note_keys("j", None))
    named = bench.redis.hget(keys.job("j"), "sealed_with").decode()
    assert named == " ".join(sorted([new.id, old.id]))
