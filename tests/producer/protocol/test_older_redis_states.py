"""Redis loses its last writes: a lagging replica is promoted, or an older file is loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls import jobs as job_calls
from batchmill.producer.protocol.outbox import DeliveryOutcome
from batchmill.producer.protocol.replies import (
    Claim,
    CompleteStatus,
    HeldJob,
    JobState,
    ReleaseCause,
    ReleaseStatus,
    TokenWrite,
    WriteStatus,
)

from ...support.older_state import OlderState

FENCED = WriteStatus.FENCED


@pytest.fixture
def two_holders(bench: Any) -> tuple[Claim, Claim]:
    """Two claims of one job and of one number: Redis has lost the first one."""
    bench.submit("j", webhook="https://example.com/hook")
    before = OlderState(bench.redis)
    forgotten = bench.claim("j", identity="model-1")
    before.restore()
    current = bench.claim("j", identity="model-2")
    assert bench.store.load("j").fence == 1
    return forgotten, current


def write(claim: Claim, position: int, token_ids: list[int]) -> TokenWrite:
    text = bytes(65 + token_id % 26 for token_id in token_ids)
    return TokenWrite("j", claim.fence, position, token_ids, text, position, claim.identity)


def end(bench: Any, claim: Claim, text: str) -> CompleteStatus:
    status: CompleteStatus = bench.store.complete(
        "j", fence=claim.fence, state=JobState.COMPLETED, result=json.dumps({"text": text})
    )
    return status


WRITES: dict[str, Callable[[Any, Claim], Any]] = {
    "checkpoint": lambda bench, claim: bench.store.checkpoint(
        [write(claim, 0, [1, 2])], lease_ms=60_000
    )[0],
    "renew": lambda bench, claim: bench.store.renew([HeldJob("j", claim.fence)], lease_ms=60_000)[
        0
    ],
    "release after a drain": lambda bench, claim: bench.store.release(
        [HeldJob("j", claim.fence)], cause=ReleaseCause.DRAIN
    )[0],
    "release after an engine death": lambda bench, claim: bench.store.release(
        [HeldJob("j", claim.fence)], cause=ReleaseCause.ENGINE_DEATH
    )[0],
    "complete": lambda bench, claim: end(bench, claim, "forgotten"),
    "fail": lambda bench, claim: bench.store.complete(
        "j", fence=claim.fence, state=JobState.FAILED, error="{}"
    ),
}


@pytest.mark.parametrize("name", WRITES)
def test_a_forgotten_holder_writes_nothing_beside_one_of_the_same_number(
    bench: Any, two_holders: tuple[Claim, Claim], name: str
) -> None:
    forgotten, current = two_holders
    bench.store.checkpoint([write(current, 0, [7, 8])], lease_ms=60_000)
    before = OlderState(bench.redis)
    record, lease = bench.redis.hgetall(keys.job("j")), bench.redis.zscore(keys.LEASES, "j")
    assert WRITES[name](bench, forgotten) in (
        FENCED,
        ReleaseStatus.FENCED,
        CompleteStatus.FENCED,
    )
    assert bench.redis.hgetall(keys.job("j")) == record
    assert bench.redis.zscore(keys.LEASES, "j") == lease
    assert set(bench.redis.scan_iter("*")) == set(before.content)
    assert WRITES[name](bench, current) not in (FENCED, ReleaseStatus.FENCED)


def test_the_end_of_a_forgotten_holder_is_not_taken_for_the_end_of_the_other(
    bench: Any, two_holders: tuple[Claim, Claim]
) -> None:
    forgotten, current = two_holders
    assert end(bench, current, "current") is CompleteStatus.OK
    assert end(bench, forgotten, "forgotten") is CompleteStatus.FENCED
    assert end(bench, current, "current") is CompleteStatus.ALREADY_DONE
    assert json.loads(bench.store.load("j").result) == {"text": "current"}


def test_a_holder_whose_job_is_waiting_again_writes_nothing(bench: Any) -> None:
    bench.submit("j")
    before = OlderState(bench.redis)
    forgotten = bench.claim("j")
    before.restore()
    for name, action in WRITES.items():
        assert action(bench, forgotten) == "FENCED", name
    assert bench.state("j") == "queued"
    assert bench.claim("j").token_ids == []


def test_a_holder_that_redis_still_knows_sends_its_lost_tokens_again(bench: Any) -> None:
    claim = bench.started("j")
    bench.store.checkpoint([write(claim, 0, [1, 2])], lease_ms=60_000)
    before = OlderState(bench.redis)
    bench.store.checkpoint([write(claim, 2, [3, 4])], lease_ms=60_000)
    before.restore()
    later = [write(claim, 4, [5])]
    assert bench.store.checkpoint(later, lease_ms=60_000) == [WriteStatus.GAP]
    everything = [write(claim, 0, [1, 2, 3, 4, 5])]
    assert bench.store.checkpoint(everything, lease_ms=60_000) == [WriteStatus.OK]
    assert bench.store.read_tokens("j") == [1, 2, 3, 4, 5]


def test_the_claim_of_a_forgotten_job_of_the_same_id_is_another(bench: Any) -> None:
    """A new record of an id starts its fences again at 1."""
    old = bench.started("j")
    end(bench, old, "old")
    bench.store.run(job_calls.forget("j"))
    new = bench.started("j")
    assert bench.store.checkpoint([write(old, 0, [9])], lease_ms=60_000) == [FENCED]
    assert end(bench, old, "old") is CompleteStatus.FENCED
    assert end(bench, new, "new") is CompleteStatus.OK


@pytest.mark.parametrize("identity", ["model-2", "model-10", "MODEL-1"])
def test_tokens_of_another_identity_than_the_claims_are_refused(bench: Any, identity: str) -> None:
    claim = bench.started("j")
    bench.store.checkpoint([write(claim, 0, [1, 2])], lease_ms=60_000)
    [status] = bench.store.checkpoint(
        [TokenWrite("j", claim.fence, 2, [3], b"D", 2, identity)], lease_ms=60_000
    )
    assert status is FENCED
    last = TokenWrite("j", claim.fence, 2, [3], identity=identity)
    call = job_calls.complete(last, JobState.COMPLETED, "{}", None)
    assert bench.store.run(call) is CompleteStatus.FENCED
    assert bench.store.read_tokens("j") == [1, 2]
    assert bench.state("j") == "in_progress"


def test_a_forgotten_deliverer_settles_nothing_beside_one_of_the_same_number(bench: Any) -> None:
    claim = bench.started("j", webhook="https://example.com/hook")
    end(bench, claim, "x")
    before = OlderState(bench.redis)
    [forgotten] = bench.store.outbox_claim(owner="a", limit=9, lease_ms=60_000)
    before.restore()
    [current] = bench.store.outbox_claim(owner="b", limit=9, lease_ms=60_000)
    assert (forgotten.event_id, forgotten.attempt) == (current.event_id, current.attempt)
    for outcome in DeliveryOutcome:
        status = bench.store.outbox_settle(
            forgotten.event_id, fence=forgotten.fence, outcome=outcome
        )
        assert status is FENCED, outcome
    settled = bench.store.outbox_settle(
        current.event_id, fence=current.fence, outcome=DeliveryOutcome.DELIVERED
    )
    assert settled is WriteStatus.OK
