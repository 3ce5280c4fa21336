"""Plain Celery tasks get a result even if no worker was there to report their job's end."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import pytest
from celery.exceptions import TaskRevokedError

from batchmill.producer.job.document import GenerationJob
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.replies import Claim, HeldJob, JobState, ReleaseCause
from batchmill.producer.settings import ProducerSettings
from batchmill.producer.store.submission import prepare

from ..conftest import Mill

#: Long enough to be still running when a test checks; the stub makes about 500 tokens per second.
LONG = 4000


def test_tasks_that_end_while_they_wait_are_revoked_for_their_senders(mill: Mill) -> None:
    worker = mill.start_worker()
    sent = [
        mill.celery.send_task(
            keys.TASK_NAME,
            kwargs={"job": {"prompt": "x", "max_tokens": LONG, "ttl_s": 600}},
            queue="batchmill.demo.normal",
        )
        for _ in range(2)
    ]
    for task in sent:
        mill.wait_for(partial(mill.store.read_tokens, task.id), "its first tokens")
    assert worker.end() == 0  # as in a deployment: the jobs are given back
    cancelled, late = sent
    assert {mill.state(task.id) for task in sent} == {JobState.QUEUED}
    mill.store.cancel(cancelled.id)
    mill.store.client.hset(keys.job(late.id), "deadline_at_ms", 1)
    mill.store.client.zadd(keys.DEADLINES, {late.id: 1})
    # No worker ever gets their announcements.
    mill.store.client.delete(keys.announced("batchmill.demo.normal"))

    mill.start_worker("w2")

    with pytest.raises(TaskRevokedError, match="cancelled: the job was cancelled"):
        cancelled.get(timeout=60)
    with pytest.raises(TaskRevokedError, match="deadline"):
        late.get(timeout=60)
    assert mill.state(late.id) is JobState.EXPIRED
    assert cancelled.state == late.state == "REVOKED"


def adopted(mill: Mill, name: str, *, celery_result: bool = True) -> Claim:
    """Adopt and claim a plain Celery task for a worker that will never report to Celery."""
    new = prepare(GenerationJob(prompt="x"), ProducerSettings(), job_id=name)
    mill.store.adopt(replace(new, celery_result=celery_result))
    claim = mill.store.claim(name, owner="dead", lease_ms=60_000, identity="stub")
    assert isinstance(claim, Claim)
    return claim


def test_a_worker_killed_after_the_end_was_written_leaves_no_sender_waiting(mill: Mill) -> None:
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
    poison = adopted(mill, "poison")
    mill.store.client.hset(keys.job("poison"), mapping={"alone": 1, "crashes": 2})
    mill.store.release([HeldJob("poison", poison.fence)], cause=ReleaseCause.ENGINE_DEATH)

    mill.start_worker()

    assert mill.celery.AsyncResult("done").get(timeout=60)["text"] == "all of it"
    with pytest.raises(Exception, match=r"numerical_error.*not finite"):
        mill.celery.AsyncResult("failed").get(timeout=60)
    with pytest.raises(Exception, match="attempts_exhausted"):
        mill.celery.AsyncResult("poison").get(timeout=60)
    mill.wait_for(lambda: not mill.store.client.exists(keys.CELERY_ENDS), "all results")
    assert mill.celery.AsyncResult("silent").state == "PENDING"
