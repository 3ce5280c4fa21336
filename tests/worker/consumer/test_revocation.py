"""What is true at the moment when a sender sees that its task was revoked."""

from __future__ import annotations

from typing import Any

import pytest
from celery.exceptions import TaskRevokedError

from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls.jobs import retry
from batchmill.producer.protocol.calls.new_job import NO_LIMITS
from batchmill.producer.protocol.replies import JobState, RetryStatus

from ..announcements import QUEUE
from ..conftest import Mill


def send_waiting(mill: Mill) -> Any:
    """Send a task that waits in its record."""
    job = {"prompt": "x", "max_tokens": 4, "seed": 7}
    sent = mill.celery.send_task(keys.TASK_NAME, kwargs={"job": job}, queue=QUEUE, countdown=3600)
    mill.wait_for(lambda: mill.store.load(sent.id), "its record")
    return sent


def test_a_job_can_be_retried_as_soon_as_its_sender_sees_that_it_was_revoked(
    running_mill: Mill,
) -> None:
    for _ in range(10):  # Celery's state and the job's record are two writes
        sent = send_waiting(running_mill)
        running_mill.celery.control.revoke(sent.id)
        with pytest.raises(TaskRevokedError):
            sent.get(timeout=60)
        reply = running_mill.store.run(retry(sent.id, NO_LIMITS))
        assert reply.status is RetryStatus.RETRIED
        (record,) = running_mill.wait_ended(sent.id)
        assert record.state is JobState.COMPLETED
