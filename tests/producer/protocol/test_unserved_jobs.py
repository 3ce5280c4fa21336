"""Jobs for a model that no worker serves expire; those of a served model wait for their turn."""

from __future__ import annotations

from typing import Any

import pytest

from batchmill.producer import Client, JobExpired
from batchmill.producer.protocol import keys

from ...support.worker_info import worker_info

QUEUE = keys.queue_name("demo", "normal")
TTL_MS = 3_600_000
LONG_AGO_MS = 1000


def sweep(bench: Any) -> int:
    """Sweep with a page of repair; return how many jobs expired."""
    bench.redis.delete(keys.REPAIR)
    return int(bench.store.sweep(repair_interval_ms=1, unserved_ttl_ms=TTL_MS).expired)


def let_wait(bench: Any, job_id: str, **changes: Any) -> None:
    """Submit a job as if it had been submitted long ago."""
    bench.submit(job_id, **changes)
    bench.redis.hset(keys.job(job_id), "enqueued_at_ms", LONG_AGO_MS)


def announce_worker(bench: Any) -> None:
    bench.store.announce_worker(worker_info("w1", queues=(QUEUE,)))


def test_a_job_whose_model_nobody_serves_expires_with_the_reason(
    bench: Any, redis_url: str
) -> None:
    let_wait(bench, "j", webhook="https://example.com/hook")
    assert sweep(bench) == 0  # the queue is seen for the first time
    bench.redis.zadd(keys.SERVED, {QUEUE: LONG_AGO_MS})
    assert sweep(bench) == 1
    with Client(redis_url) as client, pytest.raises(JobExpired, match="no worker served") as caught:
        client.job("j").result(timeout_s=1)
    assert caught.value.code == "not_served"
    assert bench.redis.zcard(keys.OUTBOX) == 1


def test_a_job_waits_as_long_as_workers_serve_its_model(bench: Any) -> None:
    let_wait(bench, "j")
    bench.redis.zadd(keys.SERVED, {QUEUE: LONG_AGO_MS})
    announce_worker(bench)
    assert sweep(bench) == 0
    assert bench.state("j") == "queued"


@pytest.mark.parametrize("changes", [{"ttl_ms": 2 * TTL_MS}, {"delay_ms": TTL_MS}, None])
def test_a_deadline_a_delay_or_a_fresh_submission_keeps_a_job(
    bench: Any, changes: dict[str, Any] | None
) -> None:
    if changes is None:
        bench.submit("j")
    else:
        let_wait(bench, "j", **changes)
    bench.redis.zadd(keys.SERVED, {QUEUE: LONG_AGO_MS})
    assert sweep(bench) == 0
    assert bench.state("j") == "queued"


def test_without_the_setting_jobs_wait_forever(bench: Any) -> None:
    let_wait(bench, "j")
    bench.redis.zadd(keys.SERVED, {QUEUE: LONG_AGO_MS})
    bench.store.sweep(repair_interval_ms=1)
    assert bench.state("j") == "queued"
