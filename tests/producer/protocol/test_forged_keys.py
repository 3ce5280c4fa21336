"""Keys that batchmill did not write end their own job and stop no other."""

from __future__ import annotations

from typing import Any

import pytest
from redis.exceptions import ResponseError

from batchmill.producer.job.batch import BatchRequest
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls.new_job import BatchPlace
from batchmill.producer.protocol.replies import ClaimRefusal, CompleteStatus, JobState
from batchmill.producer.settings import ProducerSettings
from batchmill.producer.store import batch_calls, job_index
from batchmill.producer.store.job_index import JobQuery

QUEUE = keys.queue_name("demo", "normal")


def test_forged_events_become_dead_letters_and_the_others_are_claimed(bench: Any) -> None:
    bench.submit("j", webhook="https://example.com/hook")
    bench.store.cancel("j")
    bench.redis.set(keys.event("a-string"), "no event")
    bench.redis.hset(keys.event("half"), "type", "generation.completed")
    bench.redis.hset(
        keys.event("counted"),
        mapping={
            "type": "t",
            "job_id": "j",
            "url": "https://e",
            "created_at_ms": 1,
            "attempts": "many",
        },
    )
    for name in ("a-string", "half", "counted", "of-nothing"):
        bench.redis.zadd(keys.OUTBOX, {name: 1})
    bench.store.outbox_repair(0)

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


def test_a_fault_outside_the_jobs_keys_is_an_error_and_ends_no_job(bench: Any) -> None:
    claim = bench.started("j")
    bench.redis.rename(keys.TOTALS, "elsewhere")
    bench.redis.set(keys.TOTALS, "no counters")

    with pytest.raises(ResponseError, match="WRONGTYPE"):
        bench.store.complete("j", fence=claim.fence, state=JobState.COMPLETED, result="{}")

    assert bench.store.dead_letters() == []
    bench.redis.rename("elsewhere", keys.TOTALS)


@pytest.mark.parametrize("field", ["state", "doc", "fence", "attempts", "result_ttl_ms"])
def test_a_malformed_record_ends_at_the_next_sweep(bench: Any, field: str) -> None:
    bench.submit("bad")
    bench.submit("good")
    bench.redis.hset(keys.job("bad"), field, "rubbish")
    if field == "doc":
        bench.redis.hdel(keys.job("bad"), field)

    refusal = bench.store.claim("bad", owner="w", lease_ms=60_000, identity="i")
    bench.store.sweep()

    assert refusal in (ClaimRefusal.UNUSABLE, ClaimRefusal.UNKNOWN)
    (letter,) = bench.store.dead_letters()
    assert (letter.id, letter.reason.partition(":")[0]) == ("bad", "unusable_record")
    assert bench.state("bad") == "failed"
    assert bench.redis.ttl(keys.job("bad")) > 0
    assert bench.claim("good").attempts == 1
    assert not bench.redis.exists(keys.UNUSABLE)


@pytest.mark.parametrize("verb", ["cancel_where", "batch"])
def test_a_forged_key_does_not_stop_the_cancellation_of_other_jobs(bench: Any, verb: str) -> None:
    fields: dict[str, Any] = {"tags": ("t",)}
    if verb == "batch":
        bench.store.run(batch_calls.create(BatchRequest(), ProducerSettings(), "batch_1"))
    for index, job_id in enumerate(("older", "bad", "newer")):
        if verb == "batch":
            fields["batch"] = BatchPlace("batch_1", index)
        bench.submit(job_id, **fields)
    bench.redis.hset(keys.tokens("bad"), "no", "tokens")

    if verb == "batch":
        bench.store.run(batch_calls.cancel("batch_1"))
    else:
        bench.store.run(job_index.cancel_where(JobQuery.checked("t", None)))
    bench.store.sweep()
    bench.store.sweep()

    assert {i: bench.state(i) for i in ("older", "bad", "newer")} == {
        "older": "cancelled",
        "bad": "failed",
        "newer": "cancelled",
    }
    if verb == "batch":
        assert bench.redis.hmget(keys.batch("batch_1"), "state", "failed") == [b"cancelled", b"3"]


@pytest.mark.parametrize("field", ["fence", "result_ttl_ms"])
def test_a_malformed_record_counts_in_its_batch_and_is_charged_no_more(
    bench: Any, field: str
) -> None:
    bench.store.run(batch_calls.create(BatchRequest(), ProducerSettings(), "batch_1"))
    bench.submit("bad", batch=BatchPlace("batch_1", 0))
    bench.store.run(batch_calls.seal("batch_1", 1))
    bench.redis.hset(keys.job("bad"), field, "rubbish")

    bench.store.claim("bad", owner="w", lease_ms=60_000, identity="i")
    bench.store.sweep()

    assert bench.redis.hmget(keys.batch("batch_1"), "state", "failed") == [b"completed", b"1"]
    assert not bench.redis.exists(keys.USAGE)


@pytest.mark.parametrize("field", ["fence", "result_ttl_ms", "attempts"])
def test_celery_gets_the_end_of_a_plain_task_whose_record_is_malformed(
    bench: Any, field: str
) -> None:
    bench.submit("bad", celery_result=True)
    bench.redis.hset(keys.job("bad"), field, "rubbish")

    bench.store.claim("bad", owner="w", lease_ms=60_000, identity="i")
    bench.store.sweep()

    assert bench.store.take_celery_ends(limit=9, grace_ms=-1000, lease_ms=1000) == ["bad"]
    record = bench.store.load("bad")
    assert record.state is JobState.FAILED
    assert b"unusable_record" in record.error


def test_forged_counters_and_queues_do_not_stop_the_sweep(bench: Any) -> None:
    bench.submit("j", cost=7)
    bench.redis.set(keys.USAGE, "no counters")
    bench.redis.zadd(keys.QUEUES, {"forged": 1})
    bench.redis.set(keys.queued("forged"), "no queue")

    bench.store.sweep()

    assert bench.redis.hget(keys.USAGE, "tokens") == b"7"
    bench.redis.zrem(keys.QUEUES, "forged")
    bench.redis.delete(keys.queued("forged"))


def test_a_forged_queue_stops_neither_delayed_jobs_nor_dead_letters(bench: Any) -> None:
    bench.redis.zadd(keys.QUEUES, {"forged": 1})
    bench.redis.set(keys.queued("forged"), "no queue")
    for job_id in ("gone", "due"):
        bench.submit(job_id, delay_ms=3_600_000)
        bench.redis.zadd(keys.SCHEDULED, {job_id: 1})
    bench.redis.delete(keys.job("gone"))
    bench.redis.zrem(keys.state_index("queued"), "gone")
    bench.submit("bad")
    bench.redis.hset(keys.job("bad"), "fence", "rubbish")
    bench.store.claim("bad", owner="w", lease_ms=60_000, identity="i")

    assert bench.store.announce_due(limit=9) == 2
    bench.store.sweep()

    assert not bench.redis.exists(keys.SCHEDULED)
    assert bench.redis.zrange(keys.queued(QUEUE), 0, -1) == [b"due"]
    assert bench.store.load("bad").state is JobState.FAILED
    bench.redis.zrem(keys.QUEUES, "forged")
    bench.redis.delete(keys.queued("forged"))
