"""Celery's stamps: a task keeps them outside a workflow, and a revocation may name them."""

from __future__ import annotations

from typing import Any

import pytest
from celery.exceptions import TaskRevokedError

from batchmill.producer import Client
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.pauses import PauseKind
from batchmill.producer.protocol.replies import JobState
from batchmill.producer.store.pauses import Pauses

from ..announcements import QUEUE
from ..conftest import Mill


def send(mill: Mill, order: str, countdown: float | None = None, **fields: Any) -> Any:
    """Send a task that is stamped with an order's number."""
    job = {"prompt": "x", "max_tokens": 4, "seed": 7, **fields}
    signature = mill.celery.signature(keys.TASK_NAME, kwargs={"job": job}, queue=QUEUE)
    signature.stamp(order=order)
    return signature.apply_async(countdown=countdown)


def revoke(mill: Mill, order: str, **options: Any) -> None:
    """Revoke the tasks of an order, and wait until the worker knows it."""
    options |= {"reply": True, "timeout": 60, "limit": 1}
    assert mill.celery.control.revoke_by_stamped_headers({"order": [order]}, **options)


def test_a_running_task_with_a_revoked_stamp_ends(running_mill: Mill) -> None:
    revoked, other = (send(running_mill, order, max_tokens=4000) for order in ("17", "18"))
    for each in (revoked, other):
        running_mill.wait_tokens(each.id, 1)

    revoke(running_mill, "17", terminate=True)

    with pytest.raises(TaskRevokedError):
        revoked.get(timeout=60)
    (record,) = running_mill.wait_ended(revoked.id)
    assert record.state is JobState.CANCELLED
    assert running_mill.state(other.id) is not JobState.CANCELLED
    running_mill.store.cancel(other.id)
    running_mill.wait_ended(other.id)


def test_a_task_with_a_revoked_stamp_does_not_start_until_it_is_retried(running_mill: Mill) -> None:
    revoke(running_mill, "19")

    revoked, other = send(running_mill, "19"), send(running_mill, "20")

    with pytest.raises(TaskRevokedError):
        revoked.get(timeout=60)
    assert other.get(timeout=60)["status"] == "completed"
    (record,) = running_mill.wait_ended(revoked.id)
    assert record.state is JobState.CANCELLED
    with Client(running_mill.url) as client:
        client.retry(revoked.id)
    (record,) = running_mill.wait_ended(revoked.id)
    assert record.state is JobState.COMPLETED


def test_a_stamp_that_is_revoked_after_a_retry_ends_the_job_again(running_mill: Mill) -> None:
    pauses = Pauses(running_mill.store)
    sent = send(running_mill, "21", countdown=3600)
    running_mill.wait_for(lambda: running_mill.store.load(sent.id), "its record")
    running_mill.store.cancel(sent.id)
    pauses.pause(PauseKind.QUEUE, QUEUE)
    with Client(running_mill.url) as client:
        client.retry(sent.id)

    revoke(running_mill, "21")
    revoke(running_mill, "22")  # another one does not matter
    pauses.resume(PauseKind.QUEUE, QUEUE)

    (record,) = running_mill.wait_ended(sent.id)
    assert record.state is JobState.CANCELLED
    with Client(running_mill.url) as client:
        client.retry(sent.id)
    (record,) = running_mill.wait_ended(sent.id)
    assert record.state is JobState.COMPLETED
