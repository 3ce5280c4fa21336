"""A job whose attempt failed waits for its next one; nothing reports an end before the last."""

from __future__ import annotations

from typing import Any

import pytest

from batchmill.producer import JobStatus
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls import jobs as job_calls
from batchmill.producer.protocol.calls.new_job import NO_LIMITS
from batchmill.producer.protocol.replies import (
    CancelStatus,
    Claim,
    ClaimRefusal,
    CompleteStatus,
    JobState,
)
from batchmill.producer.store.job_progress import progress_readings
from batchmill.producer.store.job_status import job_status

HOOK = "https://example.com/hook"
ERROR = '{"code":"out_of_memory","message":"memory ran out","retryable":true}'


def fail(bench: Any, claim: Claim, *, retry_in_ms: int | None = 60_000) -> CompleteStatus:
    status: CompleteStatus = bench.store.complete(
        claim.job_id,
        fence=claim.fence,
        state=JobState.FAILED,
        error=ERROR,
        position=len(claim.token_ids),
        token_ids=[5, 6],
        retry_in_ms=retry_in_ms,
    )
    return status


def end_wait(bench: Any, job_id: str = "j") -> None:
    """Let the time of a job's retry come."""
    assert bench.redis.zadd(keys.SCHEDULED, {job_id: 1}, xx=True, ch=True) == 1
    bench.store.announce_due()


def status_of(bench: Any, job_id: str = "j") -> JobStatus:
    status: JobStatus = bench.store.read(job_status(job_id))
    return status


def test_a_failed_attempt_waits_for_the_next_one_with_its_tokens(bench: Any) -> None:
    claim = bench.started("j", webhook=HOOK)
    assert fail(bench, claim) is CompleteStatus.RETRYING
    status = status_of(bench)
    assert (status.state, status.retries, status.error) == (JobState.QUEUED, 1, None)
    assert status.retry_error is not None
    assert status.retry_error.code == "out_of_memory"
    ended_at_ms = status.history[-1].ended_at_ms
    assert ended_at_ms is not None
    assert status.retry_at_ms == ended_at_ms + 60_000
    assert (status.history[-1].cause, status.history[-1].code) == ("failed", "out_of_memory")
    refusal = bench.store.claim("j", owner="w", lease_ms=1, identity="model-1")
    assert refusal is ClaimRefusal.SCHEDULED
    end_wait(bench)
    assert bench.announced()[-1] == "j"
    claim = bench.claim("j")
    assert (claim.token_ids, claim.retries, claim.attempts) == ([5, 6], 1, 2)
    status = status_of(bench)
    assert (status.retry_at_ms, status.retry_error, status.retries) == (None, None, 1)
    assert bench.redis.zcard(keys.OUTBOX) == 0
    assert fail(bench, claim, retry_in_ms=None) is CompleteStatus.OK
    assert bench.redis.zrange(keys.OUTBOX, 0, -1) == [b"evt_j_failed"]
    totals = bench.store.counts().totals
    assert (totals["failed"], totals["attempts_failed"]) == (1, 1)


def test_a_repeated_call_waits_once(bench: Any) -> None:
    claim = bench.started("j")
    assert [fail(bench, claim), fail(bench, claim)] == [CompleteStatus.RETRYING] * 2
    assert (status_of(bench).retries, len(status_of(bench).history)) == (1, 1)
    end_wait(bench)
    bench.claim("j")
    assert fail(bench, claim) is CompleteStatus.FENCED


def test_a_waiting_job_can_be_cancelled_and_retried_from_the_start(bench: Any) -> None:
    fail(bench, bench.started("j"))
    assert bench.store.cancel("j").status is CancelStatus.CANCELLED
    status = status_of(bench)
    assert (status.state, status.retry_at_ms) == (JobState.CANCELLED, None)
    assert bench.store.counts().scheduled == 0
    bench.store.run(job_calls.retry("j", NO_LIMITS))
    assert status_of(bench).retries == 0
    assert bench.claim("j").retries == 0


def test_a_cancelled_job_that_fails_is_not_tried_again(bench: Any) -> None:
    claim = bench.started("j")
    assert bench.store.cancel("j").status is CancelStatus.CANCELLING
    assert fail(bench, claim) is CompleteStatus.OK
    assert status_of(bench).state is JobState.FAILED


@pytest.mark.parametrize(("retry_in_ms", "state"), [(59_000, "queued"), (61_000, "failed")])
def test_a_retry_after_the_deadline_is_not_made(bench: Any, retry_in_ms: int, state: str) -> None:
    fail(bench, bench.started("j", ttl_ms=60_000), retry_in_ms=retry_in_ms)
    assert bench.state("j") == state


def test_the_deadline_ends_a_job_that_waits_for_its_retry(bench: Any) -> None:
    fail(bench, bench.started("j", ttl_ms=60_000), retry_in_ms=1000)
    bench.pass_deadline("j")
    assert bench.store.sweep().expired == 1
    assert bench.state("j") == "expired"


def test_a_waiting_retry_counts_as_a_waiting_job(bench: Any) -> None:
    claim = bench.started("j")
    assert bench.redis.hget(keys.USAGE, "jobs") is None
    fail(bench, claim)
    assert bench.redis.hget(keys.USAGE, "jobs") == b"1"
    (reading,) = bench.store.read(progress_readings(["j"]))
    assert reading.has_delay


def test_forged_retry_fields_stop_nothing(bench: Any) -> None:
    claim = bench.started("j")
    forged = {"retries": "many", "retry_error": "[", "retry_fence": "y"}
    bench.redis.hset(keys.job("j"), mapping=forged)
    assert fail(bench, claim) is CompleteStatus.FENCED  # the record is unusable, and swept
    bench.store.sweep()
    assert bench.state("j") == "failed"
    assert bench.store.dead_letter("j").reason.startswith("unusable_record")
