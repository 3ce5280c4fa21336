"""Only the holder of the fence writes, lost replies do no harm, and a job ends once."""

from __future__ import annotations

import json
from typing import Any

import pytest
from redis.exceptions import OutOfMemoryError

from batchmill.producer.protocol import keys
from batchmill.producer.protocol.outbox import DeliveryOutcome
from batchmill.producer.protocol.records import DeadLetterKind
from batchmill.producer.protocol.replies import (
    CancelStatus,
    Claim,
    CompleteStatus,
    HeldJob,
    JobState,
    ReleaseCause,
    ReleaseStatus,
    SubmitStatus,
    TokenWrite,
    WriteStatus,
)

QUEUE = keys.queue_name("demo", "normal")
OK, FENCED, GAP = WriteStatus.OK, WriteStatus.FENCED, WriteStatus.GAP


def write(bench: Any, position: int, token_ids: list[int], fence: str | None = None) -> WriteStatus:
    fence = fence or bench.fence("j")
    status: WriteStatus
    [status] = bench.store.checkpoint(
        [TokenWrite("j", fence, position, token_ids)], lease_ms=60_000
    )
    return status


def complete(bench: Any, fence: str | None = None, **changes: Any) -> CompleteStatus:
    fence = fence or bench.fence("j")
    fields = {"state": JobState.COMPLETED, "result": "{}"} | changes
    status: CompleteStatus = bench.store.complete("j", fence=fence, **fields)
    return status


def test_a_call_with_many_checkpoints_returns_a_status_per_job(bench: Any) -> None:
    a, b = bench.started("a").fence, bench.started("b").fence
    writes = [
        TokenWrite("a", a, 0, [1, 2]),
        TokenWrite("b", a, 0, [3]),
        TokenWrite("unknown", a, 0, [4]),
        TokenWrite("b", b, 1, [5]),
        TokenWrite("b", b, 0, [6]),
    ]
    assert bench.store.checkpoint(writes, lease_ms=60_000) == [OK, FENCED, FENCED, GAP, OK]
    assert bench.store.read_tokens("a") == [1, 2]
    assert bench.store.read_tokens("a", start=1) == [2]
    assert bench.store.read_tokens("b") == [6]


def test_a_repeated_checkpoint_is_recognised(bench: Any) -> None:
    bench.started("j")
    assert [write(bench, 0, [1, 2]), write(bench, 0, [1, 2])] == [OK, OK]
    assert bench.store.read_tokens("j") == [1, 2]


def test_a_repeated_checkpoint_that_has_grown_adds_only_new_tokens(bench: Any) -> None:
    bench.started("j")
    assert [write(bench, 0, [1, 2]), write(bench, 1, [2, 3, 4])] == [OK, OK]
    assert bench.store.read_tokens("j") == [1, 2, 3, 4]


def test_a_checkpoint_that_disagrees_with_stored_tokens_is_refused(bench: Any) -> None:
    bench.started("j")
    write(bench, 0, [1, 2])
    assert [write(bench, 0, [1, 9]), write(bench, 1, [9, 3]), write(bench, 3, [4])] == [GAP] * 3
    assert bench.store.read_tokens("j") == [1, 2]


def test_an_empty_checkpoint_only_extends_the_lease(bench: Any) -> None:
    bench.started("j", lease_ms=1)
    before = bench.redis.zscore(keys.LEASES, "j")
    assert write(bench, 0, []) is OK
    assert bench.redis.zscore(keys.LEASES, "j") > before + 50_000


def test_renew_extends_leases_and_reports_lost_ones(bench: Any) -> None:
    fence = bench.started("j", lease_ms=1).fence
    held = [HeldJob("j", fence), HeldJob("j", "9.x"), HeldJob("unknown", fence)]
    assert bench.store.renew(held, lease_ms=60_000) == [OK, FENCED, FENCED]
    assert bench.store.sweep().requeued == 0


def test_a_call_without_jobs_does_nothing(bench: Any) -> None:
    assert bench.store.checkpoint([], lease_ms=1) == []
    assert bench.store.renew([], lease_ms=1) == []
    assert bench.store.release([], cause=ReleaseCause.DRAIN) == []


def test_a_worker_that_slept_through_its_lease_can_write_nothing(bench: Any) -> None:
    old = bench.started("j").fence
    write(bench, 0, [1])
    bench.lose_lease("j")
    bench.store.sweep()
    new = bench.claim("j")
    assert write(bench, 1, [99], old) is FENCED
    assert bench.store.renew([HeldJob("j", old)], lease_ms=1) == [FENCED]
    assert bench.store.release([HeldJob("j", old)], cause=ReleaseCause.DRAIN) == [
        ReleaseStatus.FENCED
    ]
    assert (
        complete(bench, old, result='{"by":"old"}', position=1, token_ids=[99])
        is CompleteStatus.FENCED
    )
    assert complete(bench, new.fence, result='{"by":"new"}', position=1, token_ids=[2]) == "OK"
    assert complete(bench, old, result='{"by":"old"}') is CompleteStatus.FENCED
    assert bench.store.load("j").result == b'{"by":"new"}'
    assert bench.store.read_tokens("j") == [1, 2]


def test_complete_stores_everything_in_one_script(bench: Any) -> None:
    bench.started("j", webhook="https://example.com/hook", idempotency_key="k", ttl_ms=60_000)
    write(bench, 0, [1])
    assert complete(bench, result='{"text":"x"}', position=1, token_ids=[2]) == "OK"
    record = bench.store.load("j")
    assert (record.state, record.result, record.error) == (
        JobState.COMPLETED,
        b'{"text":"x"}',
        None,
    )
    assert record.finished_at_ms >= record.started_at_ms
    assert bench.store.read_tokens("j") == [1, 2]
    assert bench.redis.zcard(keys.LEASES) == 0
    assert [entry.type for entry in bench.store.outbox_claim(owner="d", limit=9, lease_ms=9)] == [
        "generation.completed"
    ]
    for key in (keys.job("j"), keys.tokens("j"), keys.idempotency("default", "k")):
        assert 0 < bench.redis.pttl(key) <= 60_000


def test_a_completion_whose_reply_was_lost_is_already_done(bench: Any) -> None:
    bench.started("j", webhook="https://example.com/hook")
    last: dict[str, Any] = {"position": 0, "token_ids": [1], "result": '{"n":1}'}
    assert complete(bench, **last) is CompleteStatus.OK
    assert complete(bench, **last) is CompleteStatus.ALREADY_DONE
    assert bench.redis.zcard(keys.OUTBOX) == 1
    assert bench.store.counts().totals["completed"] == 1


def test_complete_with_a_gap_changes_nothing_and_can_be_sent_again(bench: Any) -> None:
    bench.started("j")
    lease = bench.redis.zscore(keys.LEASES, "j")
    assert complete(bench, position=1, token_ids=[2]) is CompleteStatus.GAP
    assert bench.state("j") == "in_progress"
    assert bench.redis.zscore(keys.LEASES, "j") == lease
    assert complete(bench, position=0, token_ids=[1, 2]) is CompleteStatus.OK


def test_a_failure_keeps_the_tokens_before_it(bench: Any) -> None:
    bench.started("j")
    write(bench, 0, [1, 2])
    error = '{"code":"engine_error","message":"x"}'
    assert complete(bench, state=JobState.FAILED, result=None, error=error) == "OK"
    assert bench.store.read_tokens("j") == [1, 2]


def test_an_end_by_another_client_is_not_already_done(bench: Any) -> None:
    claim = bench.started("j")
    bench.store.cancel("j")
    bench.store.release([HeldJob("j", claim.fence)], cause=ReleaseCause.DRAIN)
    assert bench.state("j") == "cancelled"
    assert complete(bench) is CompleteStatus.FENCED


@pytest.mark.parametrize("state", [JobState.QUEUED, JobState.IN_PROGRESS])
def test_a_job_can_only_be_completed_into_a_terminal_state(bench: Any, state: JobState) -> None:
    with pytest.raises(ValueError, match=state.value):
        complete(bench, "1.n", state=state)


def test_a_completed_job_needs_a_result(bench: Any) -> None:
    with pytest.raises(ValueError, match="needs its result"):
        complete(bench, "1.n", result=None)


@pytest.mark.parametrize("state", [JobState.FAILED, JobState.CANCELLED, JobState.EXPIRED])
def test_a_job_may_end_otherwise_with_its_output_so_far(bench: Any, state: JobState) -> None:
    bench.started("j", webhook="https://example.com/hook")
    error = json.dumps({"code": "engine_error", "message": "x"})
    assert complete(bench, state=state, result='{"text":"so far"}', error=error) == "OK"
    record = bench.store.load("j")
    assert (record.state, record.result) == (state, b'{"text":"so far"}')
    [entry] = bench.store.outbox_claim(owner="d", limit=9, lease_ms=9)
    assert entry.event_id == f"evt_j_{state.value}"


def test_a_job_without_a_webhook_sends_no_event(bench: Any) -> None:
    bench.started("j")
    complete(bench)
    assert bench.redis.zcard(keys.OUTBOX) == 0


def test_the_end_is_published(bench: Any) -> None:
    pubsub = bench.redis.pubsub()
    pubsub.subscribe(keys.channel("j"))
    bench.started("j")
    write(bench, 0, [1, 2, 3])
    complete(bench, position=3)
    heard: list[Any] = []
    while len(heard) < 3:
        message = pubsub.get_message(timeout=60)
        assert message is not None, heard
        if message["type"] == "message":
            heard.append(json.loads(message["data"]))
    pubsub.close()
    assert heard == [{"state": "in_progress"}, {"tokens": 3}, {"state": "completed"}]


def test_cancel_ends_a_waiting_job_at_once(bench: Any) -> None:
    bench.submit("j", webhook="https://example.com/hook")
    assert bench.store.cancel("j").status is CancelStatus.CANCELLED
    assert bench.state("j") == "cancelled"
    assert b'"cancelled"' in bench.store.load("j").error
    assert bench.redis.zcard(keys.OUTBOX) == 1
    again = bench.store.cancel("j")
    assert (again.status, again.state) == (CancelStatus.ALREADY_TERMINAL, JobState.CANCELLED)
    assert bench.redis.zcard(keys.OUTBOX) == 1


def test_cancel_reaches_a_running_job_at_its_next_checkpoint(bench: Any) -> None:
    bench.started("j")
    assert bench.store.cancel("j").status is CancelStatus.CANCELLING
    assert bench.store.cancel("j").status is CancelStatus.CANCELLING
    assert write(bench, 0, [1]) is WriteStatus.CANCEL_REQUESTED
    assert bench.store.read_tokens("j") == [1]
    assert bench.store.renew([HeldJob("j", bench.fence("j"))], lease_ms=1) == [
        WriteStatus.CANCEL_REQUESTED
    ]
    assert complete(bench, state=JobState.CANCELLED, position=1) == "OK"
    assert bench.state("j") == "cancelled"


def test_a_cancellation_in_the_last_step_leaves_one_end(bench: Any) -> None:
    bench.started("j", webhook="https://example.com/hook")
    bench.store.cancel("j")
    assert complete(bench) == "OK"
    assert bench.store.cancel("j").state is JobState.COMPLETED
    assert bench.redis.zcard(keys.OUTBOX) == 1


def test_cancelling_an_unknown_job_reports_it(bench: Any) -> None:
    assert bench.store.cancel("unknown").status is CancelStatus.UNKNOWN


def test_a_cancelled_job_does_not_start_again_when_its_worker_is_lost(bench: Any) -> None:
    bench.started("j")
    bench.store.cancel("j")
    bench.lose_lease("j")
    assert bench.store.sweep().cancelled == 1
    assert bench.state("j") == "cancelled"


def test_a_drained_job_waits_at_the_head_of_its_queue_without_a_crash(bench: Any) -> None:
    held = HeldJob("j", bench.started("j").fence)
    bench.take_announcement()
    bench.submit("other")
    assert bench.store.release([held], cause=ReleaseCause.DRAIN) == [ReleaseStatus.REQUEUED]
    record = bench.store.load("j")
    assert (record.state, record.suspect, record.crashes, record.owner) == ("queued", 0, 0, None)
    assert b'"id":"j"' in bench.take_announcement()
    assert b'"id":"other"' in bench.take_announcement()


def crash(bench: Any) -> ReleaseStatus:
    """Claim the job and let the engine die."""
    claim = bench.claim("j")
    status: ReleaseStatus
    [status] = bench.store.release([HeldJob("j", claim.fence)], cause=ReleaseCause.ENGINE_DEATH)
    return status


def test_a_job_runs_alone_after_three_engine_deaths(bench: Any) -> None:
    bench.submit("j")
    assert [crash(bench), crash(bench)] == [ReleaseStatus.REQUEUED] * 2
    claim = bench.claim("j")
    assert (claim.suspect, claim.alone) == (2, False)
    bench.store.release([HeldJob("j", claim.fence)], cause=ReleaseCause.ENGINE_DEATH)
    claim = bench.claim("j")
    assert (claim.suspect, claim.alone) == (3, True)


def test_an_output_that_starts_over_makes_progress_again(bench: Any) -> None:
    bench.submit("j")
    for num_tokens in (1000, 900, 800, 700):
        claim = bench.claim("j", identity=f"engine of {num_tokens}")
        assert (claim.token_ids, claim.alone) == ([], False)
        tokens = TokenWrite("j", claim.fence, 0, [1] * num_tokens)
        assert bench.store.checkpoint([tokens], lease_ms=60_000) == [OK]
        bench.store.release([HeldJob("j", claim.fence)], cause=ReleaseCause.ENGINE_DEATH)
        assert bench.store.load("j").suspect == 1


def test_only_crashes_alone_count_and_the_third_is_final(bench: Any) -> None:
    bench.submit("j", webhook="https://example.com/hook", document='{"prompt":"poison"}')
    outcomes = [crash(bench) for _ in range(6)]
    assert outcomes == [ReleaseStatus.REQUEUED] * 5 + [ReleaseStatus.DEAD]
    record = bench.store.load("j")
    assert (record.state, record.crashes, record.suspect) == (JobState.FAILED, 3, 3)
    assert json.loads(record.error)["code"] == "attempts_exhausted"
    [letter] = bench.store.dead_letters()
    assert (letter.id, letter.kind, letter.reason) == ("j", "job", "attempts_exhausted")
    assert (letter.payload, letter.source) == (b'{"prompt":"poison"}', "worker-1")
    [entry] = bench.store.outbox_claim(owner="d", limit=9, lease_ms=9)
    assert entry.type == "generation.failed"


def test_drains_never_make_a_job_a_suspect(bench: Any) -> None:
    bench.submit("j")
    for _ in range(10):
        claim = bench.claim("j")
        bench.store.release([HeldJob("j", claim.fence)], cause=ReleaseCause.DRAIN)
    claim = bench.claim("j")
    assert isinstance(claim, Claim)
    assert (claim.alone, claim.attempts) == (False, 11)


def test_a_released_job_whose_deadline_has_passed_expires(bench: Any) -> None:
    bench.started("j", ttl_ms=60_000)
    bench.redis.hset(keys.job("j"), "deadline_at_ms", 1)
    held = [HeldJob("j", bench.fence("j"))]
    assert bench.store.release(held, cause=ReleaseCause.DRAIN) == [ReleaseStatus.EXPIRED]
    assert bench.state("j") == "expired"


def test_jobs_in_progress_continue_when_redis_is_full(bench: Any) -> None:
    bench.submit("j", webhook="https://example.com/hook")
    bench.submit("k")
    bench.redis.config_set("maxmemory", "1")
    refused = bench.submit("new")
    assert (refused.status, refused.reached) == (SubmitStatus.FULL, None)
    with pytest.raises(OutOfMemoryError):
        bench.store.dead_letter_add(
            kind=DeadLetterKind.MESSAGE, reason="r", payload=b"p", source="s"
        )
    bench.claim("j")
    bench.claim("k")
    assert write(bench, 0, [1]) is OK
    assert bench.store.renew(
        [HeldJob("j", bench.fence("j")), HeldJob("k", bench.fence("k"))], lease_ms=60_000
    ) == [OK, OK]
    assert bench.store.release([HeldJob("k", bench.fence("k"))], cause=ReleaseCause.DRAIN) == [
        "REQUEUED"
    ]
    bench.claim("k")
    assert bench.store.cancel("k").status is CancelStatus.CANCELLING
    assert complete(bench, position=1, token_ids=[2], result='{"text":"x"}') == "OK"
    [entry] = bench.store.outbox_claim(owner="d", limit=9, lease_ms=9)
    assert bench.store.outbox_set_body_once(entry.event_id, b"{}") == b"{}"
    settled = bench.store.outbox_settle(
        entry.event_id, fence=entry.fence, outcome=DeliveryOutcome.DELIVERED
    )
    assert settled is OK
    bench.redis.config_set("maxmemory", "0")
    assert bench.store.read_tokens("j") == [1, 2]
    assert bench.store.load("new") is None
