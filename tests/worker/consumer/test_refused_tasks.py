"""Senders of tasks that no worker can run get FAILURE with the reason; their delays are kept."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from celery.exceptions import TaskRevokedError
from kombu.utils.uuid import uuid

from batchmill.producer.protocol import keys
from batchmill.producer.protocol.replies import JobState

from ..announcements import QUEUE, announcement
from ..conftest import Mill

JOB = {"prompt": "x", "max_tokens": 4, "seed": 7}


def send(mill: Mill, name: str = keys.TASK_NAME, **options: Any) -> Any:
    return mill.celery.send_task(name, kwargs={"job": JOB}, queue=QUEUE, **options)


def test_the_sender_of_a_refused_task_gets_a_failure(running_mill: Mill) -> None:
    letters = len(running_mill.store.dead_letters())
    refused = {
        "compressed": send(running_mill, compression="gzip"),
        "unknown_task": send(running_mill, "shop.no_such_task"),
        "content_type": send(running_mill, serializer="yaml"),
    }
    for code, result in refused.items():
        with pytest.raises(Exception, match=code):
            result.get(timeout=20)
        assert result.state == "FAILURE"
    assert len(running_mill.store.dead_letters()) == letters + 3


def test_a_refused_message_with_the_id_of_a_job_changes_no_result(running_mill: Mill) -> None:
    result = send(running_mill)
    result.get(timeout=20)
    job_id = running_mill.submit("a client's")
    headers = {"task": "other", "id": result.id}
    running_mill.store.client.lpush(QUEUE, announcement(result.id, headers=headers))
    headers = {"task": "other", "id": job_id}
    running_mill.store.client.lpush(QUEUE, announcement(job_id, headers=headers))
    send(running_mill, "shop.no_such_task").get(timeout=20, propagate=False)

    assert result.state == "SUCCESS"
    assert running_mill.celery.AsyncResult(job_id).state == "PENDING"


def test_a_countdown_is_kept_in_the_record_and_not_in_a_worker(running_mill: Mill) -> None:
    soon = send(running_mill, countdown=1.0)
    far = send(running_mill, countdown=3600)
    running_mill.wait_for(lambda: running_mill.store.load(far.id), "its record")

    record = running_mill.record(far.id)
    assert record.state is JobState.QUEUED
    assert record.not_before_ms is not None
    due = datetime.fromtimestamp(record.not_before_ms / 1000, UTC)
    assert timedelta(minutes=55) < due - datetime.now(UTC) < timedelta(minutes=65)
    assert soon.get(timeout=20)["status"] == "completed"
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

    with pytest.raises(TaskRevokedError):
        late.get(timeout=20)
    assert running_mill.store.load(late.id) is None
    record = running_mill.record(waiting.id)
    assert record.deadline_at_ms is not None
    assert record.not_before_ms is not None
    assert 1000 < record.deadline_at_ms - record.not_before_ms < 3000
    running_mill.store.cancel(waiting.id)


def test_follow_ups_that_cannot_be_sent_are_refused(running_mill: Mill) -> None:
    task_id = uuid()
    body = json.dumps([[], {"job": JOB}, {"callbacks": ["no signature"]}])
    headers = {"task": keys.TASK_NAME, "id": task_id}
    running_mill.store.client.lpush(QUEUE, announcement(task_id, headers=headers, body=body))

    with pytest.raises(Exception, match="bad_embed"):
        running_mill.celery.AsyncResult(task_id).get(timeout=20)
