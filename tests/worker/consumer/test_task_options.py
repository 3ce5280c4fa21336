"""Options that Celery's senders give a plain task: delay, expiry, priority, compression."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery.exceptions import TaskRevokedError

from batchmill.producer.protocol import keys
from batchmill.producer.protocol.replies import JobState

from ..announcements import QUEUE
from ..conftest import Mill

JOB = {"prompt": "x", "max_tokens": 4, "seed": 7}


def send(mill: Mill, **options: Any) -> Any:
    return mill.celery.send_task(keys.TASK_NAME, kwargs={"job": JOB}, queue=QUEUE, **options)


def test_a_countdown_is_kept_in_the_record_and_not_in_a_worker(running_mill: Mill) -> None:
    soon = send(running_mill, countdown=1.0)
    far = send(running_mill, countdown=3600)
    running_mill.wait_for(lambda: running_mill.store.load(far.id), "its record")

    record = running_mill.record(far.id)
    assert record.state is JobState.QUEUED
    assert record.not_before_ms is not None
    due = datetime.fromtimestamp(record.not_before_ms / 1000, UTC)
    assert timedelta(minutes=55) < due - datetime.now(UTC) < timedelta(minutes=65)
    assert soon.get(timeout=60)["status"] == "completed"
    record = running_mill.record(soon.id)
    assert record.started_at_ms is not None
    assert record.not_before_ms is not None
    assert record.started_at_ms >= record.not_before_ms
    assert not running_mill.store.client.exists("unacked"), "no worker holds its message"
    running_mill.store.cancel(far.id)


def test_a_task_that_expires_before_its_delay_ends_is_revoked(running_mill: Mill) -> None:
    late = send(running_mill, expires=datetime.now(UTC) - timedelta(seconds=1))
    waiting = send(running_mill, countdown=60, expires=62)
    running_mill.wait_for(lambda: running_mill.store.load(waiting.id), "its record")

    with pytest.raises(TaskRevokedError, match="expired before it started"):
        late.get(timeout=60)
    assert running_mill.state(late.id) is JobState.EXPIRED
    assert running_mill.computed(late.id) == []
    record = running_mill.record(waiting.id)
    start_by = int(running_mill.store.client.hget(keys.job(waiting.id), "start_by_ms") or 0)
    assert record.not_before_ms is not None
    assert 1000 < start_by - record.not_before_ms < 3000
    running_mill.store.cancel(waiting.id)


def test_a_task_of_any_celery_priority_runs(running_mill: Mill) -> None:
    sent = [send(running_mill, priority=priority) for priority in (0, 3, 9)]
    assert [result.get(timeout=60)["status"] for result in sent] == ["completed"] * 3
    assert not running_mill.store.client.exists("unacked", keys.TASKS_TAKEN)


@pytest.mark.parametrize("compression", ["gzip", "bzip2", "lzma"])
def test_a_compressed_task_runs(running_mill: Mill, compression: str) -> None:
    sent = send(running_mill, compression=compression)
    assert sent.get(timeout=60)["status"] == "completed"


def test_a_compressed_message_can_name_a_stored_job(running_mill: Mill) -> None:
    job_id = running_mill.submit("stored", max_tokens=4, delay_s=3600)
    running_mill.store.client.zrem(keys.SCHEDULED, job_id)
    running_mill.celery.send_task(
        keys.TASK_NAME, (job_id,), queue=QUEUE, task_id=job_id, compression="gzip"
    )
    assert running_mill.wait_ended(job_id)[0].state is JobState.COMPLETED
