"""A delayed job waits without an announcement, and may be cancelled or expire meanwhile."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from batchmill.producer import Client, JobRejected
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.replies import ClaimRefusal

QUEUE = keys.queue_name("demo", "normal")


def end_delay(bench: Any, job_id: str) -> None:
    assert bench.redis.zadd(keys.SCHEDULED, {job_id: 1}, xx=True, ch=True) == 1


def test_a_delayed_job_is_announced_when_it_is_due(bench: Any) -> None:
    bench.submit("j", delay_ms=60_000)
    assert bench.store.announce_due() == 0
    assert bench.announced() == []
    assert bench.store.counts().scheduled == 1
    end_delay(bench, "j")
    assert bench.store.announce_due() == 1
    assert bench.announced() == ["j"]
    assert bench.store.counts().scheduled == 0


def test_a_sweep_announces_due_jobs_too(bench: Any) -> None:
    bench.submit("j", delay_ms=60_000)
    end_delay(bench, "j")
    bench.store.sweep()
    assert bench.announced() == ["j"]


def test_due_jobs_come_in_the_order_of_their_start_times(bench: Any) -> None:
    now = int(time.time() * 1000)
    for name, in_ms in (("late", 900_000), ("early", 300_000)):
        bench.submit(name, not_before_ms=now + in_ms)
    bench.redis.zadd(keys.SCHEDULED, {"late": 2, "early": 1})
    bench.store.announce_due()
    assert bench.announced() == ["early", "late"]


def test_the_later_of_delay_and_start_time_counts(bench: Any) -> None:
    bench.submit("j", not_before_ms=5, delay_ms=60_000)
    record = bench.store.load("j")
    assert record.not_before_ms == record.enqueued_at_ms + 60_000


def test_a_start_in_the_past_is_not_a_delay(bench: Any) -> None:
    bench.submit("j", not_before_ms=5)
    assert bench.announced() == ["j"]
    assert bench.store.load("j").not_before_ms is None


def test_a_delayed_job_cannot_be_claimed(bench: Any) -> None:
    bench.submit("j", delay_ms=60_000)
    reply = bench.store.claim("j", owner="w", lease_ms=1000, identity="m")
    assert reply is ClaimRefusal.SCHEDULED


def test_a_job_adopted_with_a_delay_waits_for_its_announcement(bench: Any) -> None:
    bench.store.adopt(bench.new_job("task", delay_ms=60_000))
    reply = bench.store.claim("task", owner="w", lease_ms=1000, identity="m")
    assert reply is ClaimRefusal.SCHEDULED
    end_delay(bench, "task")
    bench.store.announce_due()
    assert bench.take_next() == "task"


def test_a_delayed_job_is_cancelled_at_once(bench: Any) -> None:
    bench.submit("j", delay_ms=60_000)
    bench.store.cancel("j")
    assert bench.state("j") == "cancelled"
    assert bench.store.counts().scheduled == 0


def test_a_delayed_job_expires_at_its_deadline(bench: Any) -> None:
    bench.submit("j", delay_ms=60_000, ttl_ms=120_000)
    bench.pass_deadline("j")
    assert bench.store.sweep().expired == 1
    assert bench.store.counts().scheduled == 0


def test_the_status_shows_the_start_time(redis_url: str) -> None:
    with Client(redis_url) as client:
        status = client.submit(prompt="hi", delay_s=60).status()
    assert status.scheduled_at_ms == status.enqueued_at_ms + 60_000


@pytest.mark.parametrize(
    "times",
    [
        {"ttl_s": 5, "delay_s": 5},
        {"deadline": timedelta(seconds=50), "not_before": timedelta(seconds=60)},
        {"deadline": timedelta(seconds=50), "delay_s": 60},
        {"ttl_s": 50, "not_before": timedelta(seconds=100)},
    ],
)
def test_a_deadline_before_the_start_is_refused(redis_url: str, times: dict[str, Any]) -> None:
    now = datetime.now(UTC)
    fields: dict[str, Any] = {
        name: now + value if isinstance(value, timedelta) else value
        for name, value in times.items()
    }
    with Client(redis_url) as client, pytest.raises(JobRejected, match="before"):
        client.submit(prompt="hi", **fields)
