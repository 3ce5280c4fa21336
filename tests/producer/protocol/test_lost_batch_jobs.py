"""A batch ends although records of its jobs were deleted by hand or evicted."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from batchmill.producer import BatchState, Client
from batchmill.producer.protocol import keys

from .batch_steps import HOOK, counts, end, events, ids_of, lines


@pytest.fixture
def client(redis_url: str) -> Iterator[Client]:
    with Client(redis_url) as client:
        yield client


def sweep_later(bench: Any, batch_id: str, **options: Any) -> None:
    """Sweep when the batch is due the next time."""
    bench.redis.zadd(keys.BATCHES_DUE, {batch_id: 1}, xx=True)
    bench.store.sweep(**options)


@pytest.mark.parametrize("limit", [500, 2])
def test_jobs_whose_records_are_gone_count_as_failed(
    bench: Any, client: Client, limit: int
) -> None:
    batch = client.create_batch(lines(5), webhook=HOOK)
    first, second, *others = ids_of(bench, batch.id)
    bench.redis.delete(keys.job(first), keys.job(second))
    for _ in range(4):
        sweep_later(bench, batch.id, limit=limit)
    assert client.batch(batch.id).status is not BatchState.COMPLETED  # the others have not ended
    for job_id in others:
        end(bench.store, job_id)
    for _ in range(4):
        sweep_later(bench, batch.id, limit=limit)

    status = client.batch(batch.id)

    assert status.status is BatchState.COMPLETED
    assert counts(status) == (5, 3, 2)
    assert status.errors is not None
    assert [error.code for error in status.errors.data] == ["records_lost"]
    assert [event.type for event in events(bench)] == ["batch.completed"]
    assert bench.redis.ttl(keys.batch(batch.id)) > 0
    clean(bench)


def test_a_cancelled_batch_ends_without_the_records(bench: Any, client: Client) -> None:
    batch = client.create_batch(lines(3), webhook=HOOK)
    bench.redis.delete(keys.job(ids_of(bench, batch.id)[0]))
    client.cancel_batch(batch.id)
    bench.store.sweep()
    status = client.batch(batch.id)
    assert (status.status, counts(status)) == (BatchState.CANCELLED, (3, 0, 3))
    clean(bench)


def test_jobs_that_ended_and_expired_are_not_counted_again(bench: Any, client: Client) -> None:
    batch = client.create_batch(lines(3))
    done, *others = ids_of(bench, batch.id)
    end(bench.store, done)
    bench.redis.delete(keys.job(done))
    sweep_later(bench, batch.id)
    assert counts(client.batch(batch.id)) == (3, 1, 0)
    for job_id in others:
        end(bench.store, job_id)
    assert counts(client.batch(batch.id)) == (3, 3, 0)
    clean(bench)


def test_a_job_that_is_retried_during_the_search_is_not_taken_for_lost(
    bench: Any, client: Client
) -> None:
    batch = client.create_batch(lines(5))
    first, *_ = ids_of(bench, batch.id)
    client.cancel(first)
    sweep_later(bench, batch.id, limit=2)  # has passed it as one that has ended
    client.retry(first)
    for _ in range(3):
        sweep_later(bench, batch.id, limit=2)
    assert counts(client.batch(batch.id)) == (5, 0, 0)


def clean(bench: Any) -> None:
    """Let the sweep remove what records deleted by hand have left."""
    for _ in range(3):
        bench.redis.delete(keys.REPAIR)
        bench.store.sweep(repair_interval_ms=1)
    for index in (keys.EXPIRING, keys.LEASES):
        for entry in bench.redis.zrange(index, 0, -1):
            if not bench.redis.exists(keys.job(entry.decode().split("\n")[0])):
                bench.redis.zrem(index, entry)
