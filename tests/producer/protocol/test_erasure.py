"""`forget` leaves nothing of a job's content, on whichever path it ended, after its record too.

Every key of the store is searched for a canary, which is in the prompt, the output, the metadata,
the tags and the idempotency key of each job.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from batchmill.producer import Client, ProducerSettings, UnknownBatch
from batchmill.producer.job.validation import parse_job
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.outbox import DeliveryOutcome
from batchmill.producer.protocol.records import DeadLetterKind
from batchmill.producer.protocol.replies import HeldJob, JobState, ReleaseCause, TokenWrite
from batchmill.producer.store.letter_labels import document_labels, message_labels
from batchmill.producer.store.submission import prepare

CANARY = "canary-4d1f"
HOOK = "https://example.com/hook"
FIELDS: dict[str, Any] = {
    "prompt": f"say {CANARY}",
    "tags": [f"tag-{CANARY}", "customer-17"],
    "tenant": "acme",
    "metadata": {"user": CANARY},
    "webhook": HOOK,
    "webhook_events_filter": ["started", "output", "completed", "failed", "cancelled", "expired"],
    "include_output": True,
    "idempotency_key": f"key-{CANARY}",
}


def content(redis: Any, name: bytes) -> bytes:
    """Return everything that a key holds, its name included."""
    kind = redis.type(name)
    if kind == b"string":
        return name + bytes(redis.get(name))
    if kind == b"hash":
        return name + b"".join(part for pair in redis.hgetall(name).items() for part in pair)
    if kind == b"list":
        return name + b"".join(redis.lrange(name, 0, -1))
    if kind == b"set":
        return name + b"".join(redis.smembers(name))
    return name + b"".join(redis.zrange(name, 0, -1))


def places_of_the_canary(redis: Any) -> list[str]:
    found = [name for name in redis.scan_iter() if CANARY.encode() in content(redis, name)]
    return sorted(name.decode() for name in found)


def submit(bench: Any, result_ttl_s: int = 3600, **changes: Any) -> str:
    settings = ProducerSettings(result_ttl_s=result_ttl_s)
    new = prepare(parse_job(FIELDS | changes), settings)
    assert bench.store.submit(new).job_id == new.job_id
    return new.job_id


def run(bench: Any, job_id: str) -> str:
    """Claim a job and save some of its output; return the fence."""
    claim = bench.claim(job_id)
    write = TokenWrite(job_id, claim.fence, 0, [1, 2], CANARY.encode())
    bench.store.checkpoint([write], lease_ms=60_000)
    return str(claim.fence)


def complete(bench: Any, job_id: str) -> None:
    result = json.dumps({"text": CANARY})
    fence = run(bench, job_id)
    bench.store.complete(job_id, fence=fence, state=JobState.COMPLETED, result=result, position=2)


def fail(bench: Any, job_id: str) -> None:
    error = json.dumps({"code": "x", "message": CANARY, "retryable": False})
    fence = run(bench, job_id)
    bench.store.complete(job_id, fence=fence, state=JobState.FAILED, error=error, position=2)


def die(bench: Any, job_id: str) -> None:
    """Let a job bring the engine down until it is given up, with a dead letter."""
    while bench.state(job_id) != "failed":
        held = HeldJob(job_id, bench.claim(job_id).fence)
        bench.store.release([held], cause=ReleaseCause.ENGINE_DEATH)
    assert bench.store.dead_letter(job_id) is not None


def become_unusable(bench: Any, job_id: str) -> None:
    bench.redis.hset(keys.job(job_id), "fence", "rubbish")
    bench.store.claim(job_id, owner="w", lease_ms=60_000, identity="i")
    bench.store.sweep()
    assert bench.state(job_id) == "failed"


def cancel(bench: Any, job_id: str) -> None:
    bench.store.cancel(job_id)


def expire(bench: Any, job_id: str) -> None:
    bench.pass_deadline(job_id)
    bench.store.sweep()


def cancel_while_it_runs(bench: Any, job_id: str) -> None:
    fence = run(bench, job_id)
    bench.store.cancel(job_id)
    bench.store.complete(job_id, fence=fence, state=JobState.CANCELLED, position=2)


def retry_and_fail_again(bench: Any, job_id: str) -> None:
    fail(bench, job_id)
    with Client(bench.url) as client:
        client.retry(job_id)
    fail(bench, job_id)


def end_as_a_celery_task(bench: Any, job_id: str) -> None:
    bench.redis.hset(keys.job(job_id), "celery_result", "1")
    complete(bench, job_id)
    bench.redis.set(keys.celery_result(job_id), json.dumps({"result": CANARY}), ex=86_400)


ENDS = [
    *(complete, fail, die, become_unusable, cancel, cancel_while_it_runs, expire),
    *(retry_and_fail_again, end_as_a_celery_task),
]


def leave_pending(bench: Any, outcome: DeliveryOutcome | None) -> None:
    """Deliver every event with an outcome; None leaves them pending, with their bodies written."""
    for entry in bench.store.outbox_claim(owner="d", limit=100, lease_ms=60_000):
        bench.store.outbox_set_body_once(entry.event_id, f"body {CANARY}".encode())
        if outcome is not None:
            bench.store.outbox_settle(
                entry.event_id, fence=entry.fence, outcome=outcome, reason=CANARY, retry_in_ms=0
            )


@pytest.fixture
def erasing(bench: Any, redis_url: str) -> Any:
    bench.url = redis_url
    return bench


@pytest.mark.parametrize("end", ENDS, ids=lambda end: end.__name__)
@pytest.mark.parametrize("by", ["id", "tag", "tenant"])
def test_nothing_is_left_of_a_job(erasing: Any, by: str, end: Callable[[Any, str], None]) -> None:
    job_id = submit(erasing, **({"ttl_s": 60} if end is expire else {}))
    end(erasing, job_id)
    leave_pending(erasing, DeliveryOutcome.RETRY)
    assert places_of_the_canary(erasing.redis)

    forget(erasing, by, job_id)

    assert places_of_the_canary(erasing.redis) == []


@pytest.mark.parametrize("outcome", [None, *DeliveryOutcome], ids=str)
@pytest.mark.parametrize("end", [complete, die])
@pytest.mark.parametrize("by", ["id", "tag", "tenant"])
def test_nothing_is_left_after_the_record_has_expired(
    erasing: Any, by: str, end: Callable[[Any, str], None], outcome: DeliveryOutcome | None
) -> None:
    """Dead letters and events live longer than a record."""
    job_id = submit(erasing, result_ttl_s=1)
    end(erasing, job_id)
    leave_pending(erasing, outcome)
    erasing.redis.pexpire(keys.job(job_id), 1)
    deadline = time.monotonic() + 60
    while erasing.store.load(job_id) is not None:
        assert time.monotonic() < deadline
    erasing.redis.zadd(keys.EXPIRING, dict.fromkeys(erasing.redis.zrange(keys.EXPIRING, 0, -1), 1))
    erasing.store.sweep()
    assert places_of_the_canary(erasing.redis)

    forget(erasing, by, job_id)

    assert places_of_the_canary(erasing.redis) == []


def create_batch(client: Client, *tags: list[str], last_tenant: str = "acme", **fields: Any) -> str:
    """Create a batch with one line for each list of tags; return its id."""
    lines = [{"prompt": "p", "tags": each, "tenant": "acme"} for each in tags]
    lines[-1]["tenant"] = last_tenant
    return client.create_batch(lines, metadata={"user": CANARY}, webhook=HOOK, **fields).id


def end_batch(bench: Any, batch_id: str) -> list[str]:
    ids = [i.decode() for i in bench.redis.zrange(keys.batch_jobs(batch_id), 0, -1)]
    for job_id in ids:
        complete(bench, job_id)
    leave_pending(bench, DeliveryOutcome.RETRY)
    return ids


@pytest.mark.parametrize("has_expired", [False, True])
@pytest.mark.parametrize("query", [{"tag": "customer-17"}, {"tenant": "acme"}], ids=str)
def test_nothing_is_left_of_a_batch(erasing: Any, query: dict[str, str], has_expired: bool) -> None:
    with Client(erasing.url) as client:
        batch_id = create_batch(client, ["customer-17", "a"], ["b", "customer-17"])
        end_batch(erasing, batch_id)
        if has_expired:
            erasing.redis.delete(keys.batch(batch_id), keys.batch_jobs(batch_id))
        assert places_of_the_canary(erasing.redis)

        client.forget_where(**query)

        assert places_of_the_canary(erasing.redis) == []
        assert erasing.redis.keys(f"*{batch_id}*") == []
        assert erasing.redis.zscore(keys.BATCHES, batch_id) is None
        with pytest.raises(UnknownBatch):
            client.batch(batch_id)


@pytest.mark.parametrize("other_tenant", ["acme", "umbrella"])
def test_a_batch_of_several_customers_stays_until_it_is_named(
    erasing: Any, other_tenant: str
) -> None:
    with Client(erasing.url) as client:
        batch_id = create_batch(client, ["customer-17"], ["customer-18"], last_tenant=other_tenant)
        end_batch(erasing, batch_id)
        if other_tenant != "acme":
            client.forget_where(tenant="umbrella")
        assert client.forget_where(tag="customer-17").forgotten == 1
        assert client.batch(batch_id).metadata == {"user": CANARY}
        client.forget(batch_id)
        with pytest.raises(UnknownBatch):
            client.batch(batch_id)


def test_a_batch_that_has_not_ended_is_kept(erasing: Any) -> None:
    """Not even by the leftover of an earlier batch with the same key."""
    with Client(erasing.url) as client:
        first = create_batch(client, ["customer-17"], idempotency_key="nightly")
        for job_id in end_batch(erasing, first):
            client.forget(job_id)
        erasing.redis.delete(keys.batch(first), keys.batch_jobs(first))
        second = create_batch(client, ["customer-17"], idempotency_key="nightly")
        assert second == first
        counts = client.forget_where(tenant="acme")
        assert (counts.forgotten, counts.active) == (0, 2)
        assert client.batch(second).metadata == {"user": CANARY}


def forget(bench: Any, by: str, job_id: str) -> None:
    with Client(bench.url) as client:
        if by == "id":
            client.forget(job_id)
        elif by == "tag":
            assert client.forget_where(tag="customer-17").forgotten == 1
        else:
            assert client.forget_where(tenant="acme").forgotten == 1


def test_other_jobs_stay(erasing: Any) -> None:
    gone = submit(erasing)
    kept = submit(erasing, tags=["other"], tenant="umbrella", idempotency_key="other")
    for job_id in (gone, kept):
        die(erasing, job_id)
    with Client(erasing.url) as client:
        assert client.forget_where(tag="customer-17").forgotten == 1
    assert erasing.store.dead_letter(gone) is None
    assert erasing.store.dead_letter(kept) is not None
    assert erasing.state(kept) == "failed"


def test_an_active_job_is_counted_once_and_kept(erasing: Any) -> None:
    job_id = submit(erasing)
    fail(erasing, job_id)
    with Client(erasing.url) as client:
        client.retry(job_id)
        counts = client.forget_where(tenant="acme")
    assert (counts.forgotten, counts.active) == (0, 1)


def test_a_refused_document_is_found_by_its_tag(erasing: Any) -> None:
    document = json.dumps(FIELDS | {"max_tokens": 0}).encode()
    erasing.store.dead_letter_add(
        kind=DeadLetterKind.MESSAGE,
        reason="invalid_request",
        payload=document,
        source=keys.INBOX,
        letter_id="refused",
        labels=document_labels(document),
    )
    with Client(erasing.url) as client:
        assert client.forget_where(tag="customer-17").forgotten == 1
    assert places_of_the_canary(erasing.redis) == []


@pytest.mark.parametrize("job", [FIELDS, {"tags": [1, "a,b"], "tenant": "no/name"}, [], "x"])
@pytest.mark.parametrize("is_positional", [True, False])
def test_labels_are_read_from_what_a_queue_holds(job: Any, is_positional: bool) -> None:
    arguments = [[job], {}, {}] if is_positional else [[], {"job": job}, {}]
    element = json.dumps({"body": json.dumps(arguments)}).encode()
    labels = message_labels(element)
    is_readable = job is FIELDS
    assert labels.tenant == ("acme" if is_readable else "")
    assert labels.tags == (tuple(FIELDS["tags"]) if is_readable else ())
    assert message_labels(b"\xff") == message_labels(b"[1]") == document_labels(b"")


def test_entries_of_leftovers_end_with_them(erasing: Any) -> None:
    job_id = submit(erasing)
    die(erasing, job_id)
    erasing.redis.delete(keys.leftover(job_id))
    erasing.redis.zadd(
        keys.LEFTOVERS, dict.fromkeys(erasing.redis.zrange(keys.LEFTOVERS, 0, -1), 1)
    )
    erasing.store.sweep()
    assert erasing.redis.keys(f"{keys.LEFTOVERS}*") == []
