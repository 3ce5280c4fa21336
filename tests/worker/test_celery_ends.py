"""Plain Celery tasks whose jobs ended without a worker: their senders hear of it all the same."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from celery.exceptions import TaskRevokedError

from batchmill.producer import keys
from batchmill.producer.answers import Claim, Held, JobState, ReleaseCause
from batchmill.producer.models import GenerationJob
from batchmill.producer.settings import ProducerSettings
from batchmill.producer.submission import prepare

#: Long enough to be still under way when a test looks; the stub makes about 500 a second.
LONG = 4000


@pytest.fixture
def sent(mill: Any) -> Any:
    """A plain Celery task that a worker took on and gave back, as at a deployment."""
    worker = mill.start_worker()
    sent = mill.celery.send_task(
        keys.TASK_NAME,
        kwargs={"job": {"prompt": "x", "max_tokens": LONG, "ttl_s": 600}},
        queue="batchmill.demo.normal",
    )
    mill.wait_for(lambda: mill.store.read_tokens(sent.id), "its first tokens")
    assert worker.end() == 0
    assert mill.state(sent.id) is JobState.QUEUED
    return sent


def test_a_task_cancelled_while_it_waits_is_revoked_for_its_sender(mill: Any, sent: Any) -> None:
    mill.store.cancel(sent.id)
    mill.store.client.delete("batchmill.demo.normal")  # nobody ever meets its announcement

    mill.start_worker("w2")

    with pytest.raises(TaskRevokedError, match="cancelled: the job was cancelled"):
        sent.get(timeout=20)
    assert sent.state == "REVOKED"


def test_a_task_that_expires_while_it_waits_is_revoked_for_its_sender(mill: Any, sent: Any) -> None:
    mill.store.client.hset(keys.job(sent.id), "deadline_at_ms", 1)
    mill.store.client.zadd(keys.DEADLINES, {sent.id: 1})

    mill.start_worker("w2")

    with pytest.raises(TaskRevokedError, match="deadline"):
        sent.get(timeout=20)
    assert mill.state(sent.id) is JobState.EXPIRED


def adopted(mill: Any, name: str, *, celery_result: bool = True) -> Claim:
    """A plain Celery task in the hands of a worker that will not live to tell Celery anything."""
    new = prepare(GenerationJob(prompt="x"), ProducerSettings(), job_id=name)
    mill.store.adopt(replace(new, celery_result=celery_result))
    claim = mill.store.claim(name, owner="dead", lease_ms=60_000, identity="stub")
    assert isinstance(claim, Claim)
    return claim


def test_a_worker_killed_after_the_end_was_written_leaves_no_sender_waiting(mill: Any) -> None:
    done, failed, silent = (
        adopted(mill, "done"),
        adopted(mill, "failed"),
        adopted(mill, "silent", celery_result=False),
    )
    result = {"id": "done", "model": "demo", "status": "completed", "text": "all of it"}
    for claim in (done, silent):
        mill.store.complete(
            claim.job_id,
            fence=claim.fence,
            state=JobState.COMPLETED,
            result=json.dumps(result | {"finish_reason": "stop"}),
        )
    error = json.dumps({"code": "numerical_error", "message": "not finite", "retryable": False})
    mill.store.complete(failed.job_id, fence=failed.fence, state=JobState.FAILED, error=error)

    mill.start_worker()

    assert mill.celery.AsyncResult("done").get(timeout=20)["text"] == "all of it"
    with pytest.raises(Exception, match=r"numerical_error.*not finite"):
        mill.celery.AsyncResult("failed").get(timeout=20)
    mill.wait_for(lambda: not mill.store.client.exists(keys.CELERY_ENDS), "all to be told")
    assert mill.celery.AsyncResult("silent").state == "PENDING"


def test_a_job_given_up_by_the_sweep_has_failed_for_its_sender(mill: Any) -> None:
    claim = adopted(mill, "poison")
    mill.store.client.hset(keys.job("poison"), mapping={"alone": 1, "crashes": 2})
    mill.store.release([Held(claim.job_id, claim.fence)], cause=ReleaseCause.ENGINE_DEATH)

    mill.start_worker()

    with pytest.raises(Exception, match="attempts_exhausted"):
        mill.celery.AsyncResult("poison").get(timeout=20)
