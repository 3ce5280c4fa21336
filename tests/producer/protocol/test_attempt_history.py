"""The record keeps when and where each attempt ran, and why it ended; forged ones do no harm."""

from __future__ import annotations

import json
from typing import Any

import pytest

from batchmill.producer.protocol import keys
from batchmill.producer.protocol.attempts import Attempt, count_causes
from batchmill.producer.protocol.calls import jobs as job_calls
from batchmill.producer.protocol.calls.new_job import NO_LIMITS
from batchmill.producer.protocol.replies import (
    HeldJob,
    JobState,
    ReleaseCause,
    ReleaseStatus,
    TokenWrite,
)
from batchmill.producer.results import JobStatus
from batchmill.producer.store.job_status import job_status

OUT_OF_MEMORY = '{"code":"out_of_memory","message":"m","retryable":true}'


def status_of(bench: Any, job_id: str = "j") -> JobStatus:
    status: JobStatus | None = bench.store.read(job_status(job_id))
    assert status is not None
    return status


def release(bench: Any, cause: ReleaseCause, job_id: str = "j") -> None:
    claim = bench.claim(job_id)
    bench.store.release([HeldJob(job_id, claim.fence)], cause=cause)


def brief(attempts: list[Attempt]) -> list[tuple[Any, ...]]:
    return [(a.attempt, a.tokens_at_claim, a.tokens_at_end, a.cause, a.code) for a in attempts]


def test_each_attempt_is_kept_with_its_tokens_and_the_cause_of_its_end(bench: Any) -> None:
    claim = bench.started("j")
    bench.store.checkpoint([TokenWrite("j", claim.fence, 0, [1, 2])], lease_ms=60_000)
    bench.store.release([HeldJob("j", claim.fence)], cause=ReleaseCause.DRAIN)
    release(bench, ReleaseCause.ENGINE_STALL)
    bench.claim("j")
    bench.lose_lease("j")
    bench.store.sweep()
    claim = bench.claim("j")
    assert brief(status_of(bench).history)[3:] == [(4, 2, None, None, None)]
    bench.store.complete(
        "j",
        fence=claim.fence,
        state=JobState.FAILED,
        error=OUT_OF_MEMORY,
        position=2,
        token_ids=[3],
    )
    status = status_of(bench)
    assert brief(status.history) == [
        (1, 0, 2, "drain", None),
        (2, 2, 2, "engine_stall", None),
        (3, 2, 2, "lease_expired", None),
        (4, 2, 3, "failed", "out_of_memory"),
    ]
    assert status.attempts_left_out == 0
    assert {attempt.worker for attempt in status.history} == {"worker-1"}
    times = [t or 0 for a in status.history for t in (a.claimed_at_ms, a.ended_at_ms)]
    assert times == sorted(times)
    assert times[-1] == status.finished_at_ms
    assert count_causes(status.history)["failed:out_of_memory"] == 1
    assert bench.store.counts().totals["attempts_lease_expired"] == 1


def test_another_identity_starts_from_no_tokens(bench: Any) -> None:
    claim = bench.started("j")
    bench.store.checkpoint([TokenWrite("j", claim.fence, 0, [1])], lease_ms=60_000)
    bench.store.release([HeldJob("j", claim.fence)], cause=ReleaseCause.DRAIN)
    bench.claim("j", identity="model-2")
    assert [a.tokens_at_claim for a in status_of(bench).history] == [0, 0]


def test_a_repeated_end_is_one_attempt(bench: Any) -> None:
    claim = bench.started("j")
    for _ in range(2):
        bench.store.complete("j", fence=claim.fence, state=JobState.COMPLETED, result="{}")
    assert [a.cause for a in status_of(bench).history] == ["completed"]


def test_a_long_history_keeps_its_beginning_and_its_end(bench: Any) -> None:
    bench.submit("j")
    for _ in range(30):
        release(bench, ReleaseCause.DRAIN)
    status = status_of(bench)
    assert [a.attempt for a in status.history] == [1, 2, 3, 4, *range(15, 31)]
    assert (status.attempts, status.attempts_left_out) == (30, 10)


def test_the_history_goes_on_in_the_next_run_and_is_forgotten_with_the_job(bench: Any) -> None:
    for number in (1, 2):
        fence = bench.started("j").fence if number == 1 else bench.claim("j").fence
        bench.store.complete("j", fence=fence, state=JobState.FAILED, error=OUT_OF_MEMORY)
        if number == 1:
            bench.store.run(job_calls.retry("j", NO_LIMITS))
    assert [a.code for a in status_of(bench).history] == ["out_of_memory"] * 2
    bench.store.run(job_calls.forget("j"))
    assert bench.redis.keys("*:j") == [keys.forgotten("j").encode()]


def test_a_dead_letter_keeps_the_history(bench: Any) -> None:
    bench.submit("j")
    for _ in range(5):
        release(bench, ReleaseCause.ENGINE_DEATH)
    claim = bench.claim("j")
    released = bench.store.release([HeldJob("j", claim.fence)], cause=ReleaseCause.ENGINE_STALL)
    assert released == [ReleaseStatus.DEAD]
    letter = bench.store.dead_letter("j")
    assert [a.cause for a in letter.history] == ["engine_death"] * 5 + ["engine_stall"]
    assert letter.history == tuple(status_of(bench).history)


def test_an_engine_that_dies_before_it_has_the_job_is_held_against_nobody(bench: Any) -> None:
    bench.submit("j")
    release(bench, ReleaseCause.NOT_STARTED)
    assert bench.store.load("j").suspect == 0
    assert [a.cause for a in status_of(bench).history] == ["not_started"]


FORGED_HISTORIES = {
    "text": b"garbage",
    "bytes that are not UTF-8": b"\xff\xfe\x00",
    "an object": b'{"attempt":1}',
    "numbers": b"[1,2,3]",
    "nulls": b"[null,null]",
    "nested too deep": b"[" * 900 + b"]" * 900,
    "deeper than cjson encodes": b"[{" + b'"a":{' * 990 + b"}" * 990 + b"}]",
    "not a number": b'[{"attempt":NaN,"ended_at_ms":1e999,"worker":7,"cause":[]}]',
    "huge numbers": b'[{"attempt":1e300,"claimed_at_ms":99999999999999999999,"ended_at_ms":-1}]',
    "a megabyte": b'[{"worker":"' + b"w" * 1_000_000 + b'"}]',
    "a sparse list": b'[{"a":[null,null,null,null,null,null,null,null,null,null,null,null,1]}]',
}


@pytest.mark.parametrize("forged", FORGED_HISTORIES.values(), ids=FORGED_HISTORIES)
def test_a_forged_history_stops_nothing(bench: Any, forged: bytes) -> None:
    claim = bench.started("j")
    fields = {"history": forged, "claimed_at_ms": b"\xffnever", "claimed_tokens": "9" * 5000}
    bench.redis.hset(keys.job("j"), mapping=fields)
    running = status_of(bench).history[-1]
    assert (running.claimed_at_ms, running.tokens_at_claim, running.cause) == (None, None, None)
    bench.store.release([HeldJob("j", claim.fence)], cause=ReleaseCause.DRAIN)
    bench.redis.hset(keys.job("j"), "history", forged)
    claim = bench.claim("j")
    bench.store.complete("j", fence=claim.fence, state=JobState.COMPLETED, result="{}")
    status = status_of(bench)
    assert (status.state, status.history[-1].cause) == (JobState.COMPLETED, "completed")
    assert status.history[-1].attempt == 2
    assert len(bench.redis.hget(keys.job("j"), "history")) < 70_000
    json.loads(bench.redis.hget(keys.job("j"), "history").decode(errors="replace"))
