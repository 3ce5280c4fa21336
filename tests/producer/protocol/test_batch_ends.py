"""Batches that end in another way than completed: cancelled, expired, abandoned, forged."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from batchmill.producer import BatchClosed, BatchState, Client
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.replies import HeldJob, JobState, ReleaseCause
from batchmill.producer.store import batch_calls

from .batch_steps import HOOK, complete, counts, end, events, ids_of, lines


@pytest.fixture
def client(redis_url: str) -> Iterator[Client]:
    with Client(redis_url) as client:
        yield client


def test_cancelling_ends_when_the_running_jobs_have_stopped(bench: Any, client: Client) -> None:
    batch = client.create_batch(lines(4), webhook=HOOK)
    ids = ids_of(bench, batch.id)
    end(bench.store, ids[0])
    running = bench.claim(ids[1])
    batch = client.cancel_batch(batch.id)
    assert (batch.status, counts(batch)) == (BatchState.CANCELLING, (4, 1, 2))
    assert events(bench) == []
    complete(bench.store, ids[1], running.fence, JobState.CANCELLED)
    batch = client.cancel_batch(batch.id)
    assert (batch.status, counts(batch)) == (BatchState.CANCELLED, (4, 1, 3))
    assert (batch.cancelling_at or 0) <= (batch.cancelled_at or 0)
    assert [event.type for event in events(bench)] == ["batch.cancelled"]


def test_a_batch_cancelled_while_lines_arrive_accepts_no_more(bench: Any, client: Client) -> None:
    def interrupted() -> Iterator[dict[str, Any]]:
        yield from lines(500)
        client.cancel_batch(client.batches()[0].id)
        yield from lines(2)

    with pytest.raises(BatchClosed) as closed:
        client.create_batch(interrupted())
    assert closed.value.code == "batch_cancelled"
    [batch] = client.batches()
    assert (batch.status, counts(batch)) == (BatchState.CANCELLED, (500, 0, 500))


def test_the_sweep_continues_a_cancellation_whose_client_died(bench: Any, client: Client) -> None:
    batch = client.create_batch(lines(5), webhook=HOOK)
    running = bench.claim(ids_of(bench, batch.id)[3])
    bench.store.run(batch_calls.cancel(batch.id))  # and then the client dies
    swept = [bench.store.sweep(limit=2).cancelled for _ in range(4)]
    assert swept == [2, 1, 1, 0]
    assert bench.store.load(running.job_id).cancel_requested
    assert client.batch(batch.id).status is BatchState.CANCELLING
    bench.store.release([HeldJob(running.job_id, running.fence)], cause=ReleaseCause.DRAIN)
    assert counts(client.batch(batch.id)) == (5, 0, 5)
    assert [event.type for event in events(bench)] == ["batch.cancelled"]


def pass_deadline(bench: Any, batch_id: str) -> None:
    """Move the deadline of a batch and of its jobs into the past."""
    bench.redis.hset(keys.batch(batch_id), "deadline_at_ms", 1)
    bench.redis.zadd(keys.BATCHES_DUE, {batch_id: 1}, xx=True)
    for job_id in ids_of(bench, batch_id):
        if bench.state(job_id) == "queued":
            bench.pass_deadline(job_id)


def test_a_batch_expires_with_the_jobs_that_were_too_late(bench: Any, client: Client) -> None:
    batch = client.create_batch(lines(3), webhook=HOOK, ttl_s=3600)
    assert (batch.expires_at or 0) - batch.created_at == 3600
    ids = ids_of(bench, batch.id)
    end(bench.store, ids[0])
    assert bench.store.load(ids[1]).deadline_at_ms // 1000 == batch.expires_at
    pass_deadline(bench, batch.id)
    assert bench.store.sweep().expired == 2
    batch = client.batch(batch.id)
    assert (batch.status, counts(batch)) == (BatchState.EXPIRED, (3, 1, 2))
    assert [event.type for event in events(bench)] == ["batch.expired"]


def test_late_jobs_that_are_retried_in_time_do_not_leave_the_batch_expired(
    bench: Any, client: Client
) -> None:
    batch = client.create_batch(lines(3), ttl_s=3600)
    first, *late = ids_of(bench, batch.id)
    running = bench.claim(first)
    pass_deadline(bench, batch.id)
    assert bench.store.sweep().expired == 2
    for job_id in late:
        client.retry(job_id)
    assert counts(client.batch(batch.id)) == (3, 0, 0)
    for job_id in late:
        end(bench.store, job_id)
    complete(bench.store, first, running.fence, JobState.COMPLETED)
    assert client.batch(batch.id).status is BatchState.COMPLETED


def test_one_late_job_that_is_not_retried_expires_the_batch(bench: Any, client: Client) -> None:
    batch = client.create_batch(lines(3), ttl_s=3600)
    first, second, _ = ids_of(bench, batch.id)
    running = bench.claim(first)
    pass_deadline(bench, batch.id)
    bench.store.sweep()
    client.retry(second)
    end(bench.store, second)
    complete(bench.store, first, running.fence, JobState.COMPLETED)
    assert client.batch(batch.id).status is BatchState.EXPIRED
    assert counts(client.batch(batch.id)) == (3, 2, 1)


def test_a_job_that_is_late_by_its_own_deadline_does_not_expire_the_batch(
    bench: Any, client: Client
) -> None:
    batch = client.create_batch(lines(1, ttl_s=5), ttl_s=3600)
    bench.pass_deadline(ids_of(bench, batch.id)[0])
    assert bench.store.sweep().expired == 1
    assert client.batch(batch.id).status is BatchState.COMPLETED
    assert counts(client.batch(batch.id)) == (1, 0, 1)


@pytest.mark.parametrize("has_deadline", [True, False])
def test_a_batch_whose_producer_never_came_back_ends(
    bench: Any, client: Client, has_deadline: bool
) -> None:
    def torn() -> Iterator[dict[str, Any]]:
        yield from lines(501)
        raise EOFError

    ttl_s = 60.0 if has_deadline else None
    with pytest.raises(EOFError):
        client.create_batch(torn(), webhook=HOOK, idempotency_key="k", ttl_s=ttl_s)
    [batch] = client.batches()
    for job_id in ids_of(bench, batch.id)[1:]:
        end(bench.store, job_id)
    if has_deadline:
        pass_deadline(bench, batch.id)
    bench.redis.zadd(keys.BATCHES_DUE, {batch.id: 1}, xx=True)
    for _ in range(3):
        bench.store.sweep()
    batch = client.batch(batch.id)
    assert counts(batch) == (500, 499, 1)
    wanted = BatchState.EXPIRED if has_deadline else BatchState.FAILED
    assert batch.status is wanted
    assert [event.type for event in events(bench)] == [f"batch.{wanted}"]
    with pytest.raises(BatchClosed):
        client.create_batch(lines(501), webhook=HOOK, idempotency_key="k", ttl_s=ttl_s)


def test_forged_keys_of_a_batch_stop_neither_its_jobs_nor_the_sweep(
    bench: Any, client: Client
) -> None:
    first, second = (client.create_batch(lines(1)) for _ in range(2))
    ids = [ids_of(bench, batch.id)[0] for batch in (first, second)]
    bench.store.run(batch_calls.cancel(second.id))
    for key in (keys.batch(first.id), keys.batch_jobs(second.id)):
        bench.redis.set(key, "not ours")
    end(bench.store, ids[0])
    end(bench.store, ids[1])
    bench.redis.zadd(keys.BATCHES_DUE, {first.id: 1, second.id: 1})
    bench.store.sweep()
    assert bench.state(ids[0]) == bench.state(ids[1]) == "completed"
    bench.redis.delete(keys.batch(first.id), keys.batch_jobs(second.id))


def test_one_sweep_cancels_no_more_jobs_of_many_batches_than_its_limit(
    bench: Any, client: Client
) -> None:
    batches = [client.create_batch(lines(2)) for _ in range(3)]
    for batch in batches:
        bench.store.run(batch_calls.cancel(batch.id))

    assert [bench.store.sweep(limit=2).cancelled for _ in range(4)] == [2, 2, 2, 0]
    assert {client.batch(batch.id).status for batch in batches} == {BatchState.CANCELLED}


def test_the_index_forgets_batches_whose_record_is_gone(bench: Any, client: Client) -> None:
    batch = client.create_batch([])
    assert [found.id for found in client.batches()] == [batch.id]
    bench.redis.delete(keys.batch(batch.id))
    bench.redis.zadd(keys.BATCHES_DUE, {batch.id: 1})
    bench.store.sweep()
    assert bench.redis.exists(keys.BATCHES, keys.BATCHES_DUE) == 0
