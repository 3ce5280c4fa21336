"""Submitting is atomic and idempotent; a job has one holder at a time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from batchmill.producer import Client
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls import jobs as job_calls
from batchmill.producer.protocol.calls.call import Call
from batchmill.producer.protocol.replies import (
    CancelStatus,
    Claim,
    ClaimRefusal,
    ForgetStatus,
    HeldJob,
    JobState,
    ReachedLimit,
    ReleaseCause,
    SubmitStatus,
    TokenWrite,
    WriteStatus,
)

QUEUE = keys.queue_name("demo", "normal")


def test_a_submitted_job_has_a_record_an_index_entry_and_an_announcement(bench: Any) -> None:
    reply = bench.submit("j", webhook="https://example.com/hook", ttl_ms=50_000)
    assert (reply.status, reply.job_id) == (SubmitStatus.CREATED, "j")
    record = bench.store.load("j")
    assert record.state is JobState.QUEUED
    assert record.document == b'{"prompt":"hi"}'
    assert record.webhook == "https://example.com/hook"
    assert record.deadline_at_ms == record.enqueued_at_ms + 50_000
    assert (record.fence, record.attempts, record.owner) == (0, 0, None)
    assert bench.store.queue_depths()[0].queued == 1
    assert bench.redis.llen(keys.announced(QUEUE)) == 1


def test_the_earlier_of_deadline_and_time_to_live_counts(bench: Any) -> None:
    bench.submit("far", deadline_at_ms=10**15, ttl_ms=1000)
    bench.submit("near", deadline_at_ms=5, ttl_ms=1000)
    far, near = bench.store.load("far"), bench.store.load("near")
    assert far.deadline_at_ms == far.enqueued_at_ms + 1000
    assert near.deadline_at_ms == 5


def test_submitting_the_same_id_again_changes_nothing(bench: Any) -> None:
    bench.submit("j")
    again = bench.submit("j", document='{"prompt":"other"}')
    assert (again.status, again.job_id) == (SubmitStatus.EXISTING, "j")
    assert bench.store.load("j").document == b'{"prompt":"hi"}'
    assert bench.redis.llen(keys.announced(QUEUE)) == 1


def test_twenty_parallel_submits_with_one_key_make_one_job(bench: Any) -> None:
    jobs = [bench.new_job(idempotency_key="k", fingerprint="f") for _ in range(20)]
    with ThreadPoolExecutor(20) as threads:
        replies = list(threads.map(bench.store.submit, jobs))
    assert len({reply.job_id for reply in replies}) == 1
    assert [reply.status for reply in replies].count(SubmitStatus.CREATED) == 1
    assert bench.redis.llen(keys.announced(QUEUE)) == 1
    assert len(list(bench.redis.scan_iter(match=keys.job("*")))) == 1


def test_one_key_for_two_contents_is_a_conflict_that_stores_nothing(bench: Any) -> None:
    bench.submit("a", idempotency_key="k", fingerprint="f")
    reply = bench.submit("b", idempotency_key="k", fingerprint="g")
    assert (reply.status, reply.job_id) == (SubmitStatus.CONFLICT, "a")
    assert bench.store.load("b") is None


def test_a_key_lives_as_long_as_its_job(bench: Any) -> None:
    entry = keys.idempotency("default", "k")
    bench.submit("j", idempotency_key="k", fingerprint="f", result_ttl_ms=60_000)
    assert bench.redis.ttl(entry) > 30 * 24 * 3600  # renewed by the sweep while the job waits
    bench.store.cancel("j")
    assert 0 < bench.redis.pttl(entry) <= 60_000


def test_each_tenant_has_its_own_keys(bench: Any) -> None:
    bench.submit("a", tenant="acme", idempotency_key="order-1", fingerprint="f")
    reply = bench.submit("b", tenant="umbrella", idempotency_key="order-1", fingerprint="g")
    assert (reply.status, reply.job_id) == (SubmitStatus.CREATED, "b")
    again = bench.submit("c", tenant="acme", idempotency_key="order-1", fingerprint="f")
    assert (again.status, again.job_id) == (SubmitStatus.EXISTING, "a")
    bench.store.cancel("a")
    assert bench.store.run(job_calls.forget("a")).status is ForgetStatus.FORGOTTEN
    again = bench.submit("d", tenant="umbrella", idempotency_key="order-1", fingerprint="g")
    assert (again.status, again.job_id) == (SubmitStatus.EXISTING, "b")


@pytest.mark.parametrize("fingerprint", ["f", "other content"])
def test_a_key_whose_record_was_deleted_stands_for_a_new_job(bench: Any, fingerprint: str) -> None:
    bench.submit("a", idempotency_key="k", fingerprint="f")
    bench.redis.delete(keys.job("a"))
    reply = bench.submit("b", idempotency_key="k", fingerprint=fingerprint)
    assert (reply.status, reply.job_id) == (SubmitStatus.CREATED, "b")
    bench.redis.flushall()


def test_a_full_queue_refuses_and_stores_nothing(bench: Any) -> None:
    bench.submit("a", max_queue_depth=1)
    reply = bench.submit("b", max_queue_depth=1)
    assert (reply.status, reply.job_id) == (SubmitStatus.FULL, None)
    assert reply.reached == ReachedLimit("max_queue_depth", 1, 1)
    assert bench.store.load("b") is None


def test_a_full_queue_still_finds_its_idempotency_keys(bench: Any) -> None:
    bench.submit("a", max_queue_depth=1, idempotency_key="k", fingerprint="f")
    again = bench.submit("b", max_queue_depth=1, idempotency_key="k", fingerprint="f")
    assert (again.status, again.job_id) == (SubmitStatus.EXISTING, "a")


def test_many_jobs_go_in_one_round_trip_each_with_its_own_reply(bench: Any) -> None:
    bench.submit("j1")
    replies = bench.store.run_all([job_calls.submit(bench.new_job(f"j{i}")) for i in range(300)])
    assert [reply.job_id for reply in replies] == [f"j{i}" for i in range(300)]
    assert replies[1].status is SubmitStatus.EXISTING
    assert {replies[i].status for i in range(300) if i != 1} == {SubmitStatus.CREATED}


def test_scripts_run_after_the_server_has_forgotten_them(bench: Any) -> None:
    bench.submit("a")
    bench.redis.script_flush()
    assert bench.submit("b").status is SubmitStatus.CREATED
    bench.redis.script_flush()
    [reply] = bench.store.run_all([job_calls.submit(bench.new_job("c"))])
    assert reply.status is SubmitStatus.CREATED


def test_a_pipeline_runs_if_the_server_knows_some_of_its_scripts(bench: Any) -> None:
    bench.redis.script_flush()
    bench.submit("a")
    batch: list[Call[Any]] = [
        job_calls.cancel("a"),
        job_calls.submit(bench.new_job("b")),
        job_calls.cancel("a"),
    ]
    first, second, third = bench.store.run_all(batch)
    assert (first.status, third.status) == (CancelStatus.CANCELLED, CancelStatus.ALREADY_TERMINAL)
    assert second.status is SubmitStatus.CREATED


def test_a_cancelled_job_can_give_up_its_idempotency_key(bench: Any) -> None:
    for job_id, key in (("waits", "a"), ("runs", "b"), ("keeps", "c")):
        bench.submit(job_id, idempotency_key=key, fingerprint="first")
    bench.claim("runs")
    calls = [job_calls.cancel(job_id, frees_key=True) for job_id in ("waits", "runs")]
    answers = bench.store.run_all([*calls, job_calls.cancel("keeps")])
    assert [each.status for each in answers] == [
        CancelStatus.CANCELLED,
        CancelStatus.CANCELLING,
        CancelStatus.CANCELLED,
    ]
    statuses = [
        bench.submit(f"new-{key}", idempotency_key=key, fingerprint="second").status
        for key in ("a", "b", "c")
    ]
    assert statuses == [SubmitStatus.CREATED, SubmitStatus.CREATED, SubmitStatus.CONFLICT]


def test_a_job_that_has_ended_keeps_its_idempotency_key(bench: Any) -> None:
    bench.submit("j", idempotency_key="a", fingerprint="first")
    bench.store.cancel("j")
    [answer] = bench.store.run_all([job_calls.cancel("j", frees_key=True)])
    assert answer.status is CancelStatus.ALREADY_TERMINAL
    again = bench.submit("j2", idempotency_key="a", fingerprint="first")
    assert (again.status, again.job_id) == (SubmitStatus.EXISTING, "j")


def test_no_limit_applies_to_an_adopted_job(bench: Any) -> None:
    job = bench.new_job("0b1c-celery-id", max_queue_depth=1)
    bench.submit("other")  # the queue is full, but Redis has accepted this job in its message
    assert bench.store.adopt(job).status is SubmitStatus.CREATED
    assert bench.store.adopt(job).status is SubmitStatus.EXISTING
    assert bench.redis.llen(keys.announced(QUEUE)) == 2
    assert bench.claim("0b1c-celery-id").fence.startswith("1.")


def test_a_claim_hands_over_the_job(bench: Any) -> None:
    bench.submit("j", ttl_ms=50_000)
    claim = bench.claim("j")
    record = bench.store.load("j")
    assert claim.document == b'{"prompt":"hi"}'
    assert claim.fence == f"1.{record.claim_nonce}"
    assert (claim.attempts, claim.alone, claim.token_ids) == (1, False, [])
    assert claim.deadline_at_ms == record.deadline_at_ms
    assert claim.enqueued_at_ms == record.enqueued_at_ms
    assert claim.started_at_ms == claim.claimed_at_ms == record.started_at_ms
    assert (record.state, record.owner) == (JobState.IN_PROGRESS, "worker-1")


def test_a_duplicate_announcement_is_refused_while_the_job_is_held(bench: Any) -> None:
    bench.started("j")
    again = bench.store.claim("j", owner="worker-1", lease_ms=1000, identity="model-1")
    assert again is ClaimRefusal.LEASED
    assert bench.store.load("j").attempts == 1


def test_five_workers_that_claim_at_once_get_one_claim(bench: Any) -> None:
    bench.submit("j")

    def claim(owner: str) -> Claim | ClaimRefusal:
        reply: Claim | ClaimRefusal
        reply = bench.store.claim("j", owner=owner, lease_ms=60_000, identity="model-1")
        return reply

    with ThreadPoolExecutor(5) as threads:
        replies = list(threads.map(claim, "abcde"))
    assert sum(isinstance(reply, Claim) for reply in replies) == 1
    assert replies.count(ClaimRefusal.LEASED) == 4
    assert bench.store.load("j").attempts == 1


def test_a_repeated_call_finds_the_claim_whose_reply_was_lost(bench: Any) -> None:
    bench.submit("j")
    call = job_calls.claim("j", "worker-1", 60_000, "model-1", keys.new_claim_nonce())
    first, again = bench.store.run(call), bench.store.run(call)
    assert isinstance(first, Claim)
    assert isinstance(again, Claim)
    assert (again.fence, again.attempts) == (first.fence, first.attempts)
    assert first.attempts == 1


def test_an_unknown_job_cannot_be_claimed(bench: Any) -> None:
    reply = bench.store.claim("unknown", owner="w", lease_ms=1000, identity="m")
    assert reply is ClaimRefusal.UNKNOWN


def test_an_ended_job_cannot_be_claimed(bench: Any) -> None:
    bench.submit("j")
    bench.store.cancel("j")
    reply = bench.store.claim("j", owner="w", lease_ms=1000, identity="m")
    assert reply is ClaimRefusal.TERMINAL


def test_a_late_job_expires_at_its_claim(bench: Any) -> None:
    bench.submit("j", deadline_at_ms=1)
    reply = bench.store.claim("j", owner="w", lease_ms=1000, identity="m")
    assert reply is ClaimRefusal.EXPIRED
    assert bench.state("j") == "expired"
    assert b"deadline_exceeded" in bench.store.load("j").error


def test_a_job_of_another_version_is_left_for_a_worker_that_knows_it(bench: Any) -> None:
    bench.submit("j")
    bench.redis.hset(keys.job("j"), "v", 99)
    reply = bench.store.claim("j", owner="w", lease_ms=1000, identity="m")
    assert reply is ClaimRefusal.UNSUPPORTED_VERSION
    assert bench.state("j") == "queued"


def test_a_job_of_an_unknown_version_is_announced_ever_more_rarely(bench: Any) -> None:
    bench.submit("j")
    bench.redis.hset(keys.job("j"), "v", 99)
    waits_s = []
    for _ in range(12):
        assert bench.take_announcement() is not None
        bench.store.claim("j", owner="w", lease_ms=1000, identity="i")
        counts = bench.store.sweep(reannounce_grace_ms=0)
        assert counts.reannounced == 0
        at_ms = bench.redis.zscore(keys.queued(QUEUE), "j")
        waits_s.append(round((at_ms - counts.redis_ms) / 1000))
        bench.age_announcement("j")
        assert bench.store.sweep().reannounced == 1
    assert waits_s == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 600, 600]


def test_the_next_claim_continues_from_the_tokens_of_the_last(bench: Any) -> None:
    held = HeldJob("j", bench.started("j").fence)
    bench.store.checkpoint([TokenWrite("j", held.fence, 0, [7, 4_294_967_295, 0])], lease_ms=1000)
    bench.store.release([held], cause=ReleaseCause.DRAIN)
    claim = bench.claim("j")
    assert claim.fence.startswith("2.")
    assert claim.attempts == 2
    assert claim.token_ids == [7, 4_294_967_295, 0]
    assert claim.started_at_ms <= claim.claimed_at_ms


def test_tokens_of_another_model_are_discarded_at_the_claim(bench: Any) -> None:
    held = HeldJob("j", bench.started("j").fence)
    bench.store.checkpoint([TokenWrite("j", held.fence, 0, [7])], lease_ms=1000)
    bench.store.release([held], cause=ReleaseCause.DRAIN)
    claim = bench.claim("j", identity="model-2")
    assert claim.token_ids == []
    assert (bench.store.num_tokens("j"), bench.store.load("j").restarts) == (0, 1)
    [status] = bench.store.checkpoint([TokenWrite("j", claim.fence, 0, [8])], lease_ms=1000)
    assert status is WriteStatus.OK


@pytest.mark.parametrize("bad", [[-1], [2**32]])
def test_a_token_id_outside_uint32_is_an_error(bench: Any, bad: list[int]) -> None:
    bench.started("j")
    with pytest.raises(OverflowError):
        bench.store.checkpoint([TokenWrite("j", "1.n", 0, bad)], lease_ms=1000)


def test_keys_are_named_alike_in_python_and_lua(bench: Any, redis_url: str) -> None:
    hook = "https://example.com/"
    bench.submit("j", webhook=hook, idempotency_key="k", deadline_at_ms=10**15, tags=("t",))
    bench.started("held")
    bench.store.checkpoint([TokenWrite("held", bench.fence("held"), 0, [1])], lease_ms=60_000)
    expected = {keys.job("j"), keys.queued(QUEUE), keys.DEADLINES, keys.QUEUES, keys.TOTALS}
    expected |= {keys.USAGE, keys.used(QUEUE)}
    expected |= {keys.job("held"), keys.tokens("held"), keys.LEASES, keys.announced(QUEUE)}
    expected |= {keys.idempotency("default", "k")}
    expected |= {keys.state_index("queued"), keys.state_index("in_progress"), keys.tag_index("t")}
    assert {name.decode() for name in bench.redis.keys("*")} == expected
    for number in range(8):
        bench.submit(f"next{number}", tenant="acme")
    bench.submit("later", delay_ms=60_000)
    waiting = {keys.backlog(QUEUE, "acme"), keys.turns(QUEUE), keys.SCHEDULED}
    assert waiting <= {name.decode() for name in bench.redis.keys("*")}
    with Client(redis_url) as client:
        batch = client.create_batch([{"prompt": "x"}])
    expected = {keys.batch(batch.id), keys.batch_jobs(batch.id), keys.BATCHES, keys.BATCHES_DUE}
    assert bench.redis.exists(*expected) == len(expected)
    bench.store.cancel("j")
    [entry] = bench.store.outbox_claim(owner="d", limit=1, lease_ms=1000)
    assert entry.event_id == "evt_j_cancelled"
    assert bench.redis.exists(keys.OUTBOX, keys.event(entry.event_id)) == 2
