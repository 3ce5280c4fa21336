"""Senders of tasks that no worker can run get FAILURE with the reason."""

from __future__ import annotations

import json
from typing import Any

import pytest
from celery import chord
from kombu.utils.uuid import uuid

from batchmill.producer.protocol import keys

from ..announcements import QUEUE, announcement
from ..conftest import Mill

JOB = {"prompt": "x", "max_tokens": 4, "seed": 7}


def send(mill: Mill, name: str = keys.TASK_NAME, **options: Any) -> Any:
    return mill.celery.send_task(name, kwargs={"job": JOB}, queue=QUEUE, **options)


def test_the_sender_of_a_refused_task_gets_a_failure(running_mill: Mill) -> None:
    letters = len(running_mill.store.dead_letters())
    refused = {
        "unknown_task": send(running_mill, "shop.no_such_task"),
        "content_type": send(running_mill, serializer="yaml"),
        "bad_id": send(running_mill, task_id="x" * 300),
        "send a group": send(running_mill, "celery.map"),
    }
    for code, result in refused.items():
        with pytest.raises(Exception, match=code):
            result.get(timeout=60)
        assert result.state == "FAILURE"
    assert len(running_mill.store.dead_letters()) == letters + len(refused)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"task": "shop.no_such_task"}, "unknown_task"),
        ({"kwargs": {"job": JOB | {"temperature": -1}}}, "temperature"),
        ({"kwargs": {"job": JOB | {"prompt": "x" * (25 << 20)}}}, "too_large"),
    ],
)
def test_a_refused_part_of_a_chord_fails_its_body(
    running_mill: Mill, changes: dict[str, Any], code: str
) -> None:
    def part(task: str = keys.TASK_NAME, **fields: Any) -> Any:
        options = {"kwargs": {"job": JOB}, "queue": QUEUE, **fields}
        return running_mill.celery.signature(task, **options)

    body = running_mill.celery.signature("shop.never", queue="shop")
    result = chord([part(), part(**changes)])(body)

    with pytest.raises(Exception, match=code):
        result.get(timeout=60)


def test_a_refused_message_with_the_id_of_a_job_changes_no_result(running_mill: Mill) -> None:
    result = send(running_mill)
    result.get(timeout=60)
    job_id = running_mill.submit("a client's")
    headers = {"task": "other", "id": result.id}
    running_mill.store.client.lpush(QUEUE, announcement(result.id, headers=headers))
    headers = {"task": "other", "id": job_id}
    running_mill.store.client.lpush(QUEUE, announcement(job_id, headers=headers))
    send(running_mill, "shop.no_such_task").get(timeout=60, propagate=False)

    assert result.state == "SUCCESS"
    assert running_mill.celery.AsyncResult(job_id).state == "PENDING"


def test_follow_ups_that_cannot_be_sent_are_refused(running_mill: Mill) -> None:
    task_id = uuid()
    body = json.dumps([[], {"job": JOB}, {"callbacks": ["no signature"]}])
    headers = {"task": keys.TASK_NAME, "id": task_id}
    running_mill.store.client.lpush(QUEUE, announcement(task_id, headers=headers, body=body))

    with pytest.raises(Exception, match="bad_embed"):
        running_mill.celery.AsyncResult(task_id).get(timeout=60)
