"""What Redis has accepted is run, and what an operator revoked can be retried."""

from __future__ import annotations

import pytest

from batchmill.producer.errors import JobRejected, QueueFull, StructureCheckUnavailable
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls.jobs import retry
from batchmill.producer.protocol.calls.new_job import QueueLimits
from batchmill.producer.protocol.replies import JobState, RetryStatus
from batchmill.worker.consumer import task_mover
from batchmill.worker.consumer.refused_task import RefusedTasks
from batchmill.worker.consumer.task_mover import TaskMover
from batchmill.worker.settings import WorkerSettings

from ..announcements import QUEUE
from ..conftest import Mill


def test_a_task_that_redis_accepted_survives_a_full_redis(private_mill: Mill) -> None:
    mill = private_mill
    worker = mill.start_worker(stub={"step_time_s": 0.01}, max_num_seqs=1)
    running = mill.submit("running", max_tokens=200)
    mill.wait_tokens(running, 2)
    job = {"prompt": "x", "max_tokens": 4, "seed": 7}
    accepted = mill.celery.send_task(keys.TASK_NAME, kwargs={"job": job}, queue=QUEUE)

    mill.store.client.config_set("maxmemory", "1")
    (record,) = mill.wait_ended(running)
    mill.wait_for(lambda: mill.store.load(accepted.id), "the record of the plain task")
    assert mill.wait_ended(accepted.id)[0].state is JobState.COMPLETED
    mill.wait_for(lambda: "celery_report_refused" in worker.log, "the refusal of the result")
    mill.store.client.config_set("maxmemory", "0")

    assert record.state is JobState.COMPLETED
    assert accepted.get(timeout=60)["status"] == "completed"


@pytest.mark.parametrize(
    "refusal",
    [
        QueueFull("the broker has reached its memory limit"),
        StructureCheckUnavailable("no process can be started", param="structured_outputs"),
    ],
    ids=lambda refusal: type(refusal).__name__,
)
def test_a_task_that_is_refused_for_now_waits(
    mill: Mill, monkeypatch: pytest.MonkeyPatch, refusal: JobRejected
) -> None:
    def refuse(*_: object) -> None:
        raise refusal

    monkeypatch.setattr(task_mover, "_RETRY_MS", 0)
    mover = new_mover(mill)
    job = {"prompt": "x", "max_tokens": 4, "seed": 7}
    sent = mill.celery.send_task(keys.TASK_NAME, kwargs={"job": job}, queue=QUEUE)

    with monkeypatch.context() as patch:
        patch.setattr(task_mover, "read_job", refuse)
        patch.setattr(task_mover, "_RETRY_MS", 50)
        mover.move_tasks()
    assert (sent.state, mill.store.load(sent.id)) == ("PENDING", None)

    def moved() -> object:
        mover.move_tasks()
        return mill.store.load(sent.id)

    mill.wait_for(moved, "the task to be tried again")
    assert mill.store.state(sent.id) is JobState.QUEUED
    mover.close()
    mover.move_tasks()


def new_mover(mill: Mill) -> TaskMover:
    return TaskMover(
        WorkerSettings(broker_url=mill.url, engine="stub"),
        mill.store,
        RefusedTasks(mill.celery, mill.store, node_name="w1"),
        session="w1.0a",
        connected_s=lambda: 0.0,
        read_queues=lambda: (QUEUE,),
    )


def test_a_revoked_job_can_be_retried_on_every_worker(mill: Mill) -> None:
    mill.start_worker(stub={"step_time_s": 0.01}, max_num_seqs=1)
    mill.start_worker("w2", stub={"step_time_s": 0.01}, max_num_seqs=1)
    jobs = [mill.submit(f"job {number}", max_tokens=150) for number in range(6)]
    mill.wait_tokens(jobs[0], 1)

    mill.celery.control.revoke(jobs, terminate=True)
    assert {record.state for record in mill.wait_ended(*jobs)} == {JobState.CANCELLED}
    for job_id in jobs:
        reply = mill.store.run(retry(job_id, QueueLimits()))
        assert reply.status is RetryStatus.RETRIED

    records = mill.wait_ended(*jobs)
    assert {record.state for record in records} == {JobState.COMPLETED}
    assert len({record.owner for record in records}) == 2, "both workers took retries"


def test_a_running_task_that_is_revoked_without_terminate_completes(mill: Mill) -> None:
    """No other worker takes it for one that waits, and stores REVOKED."""
    mill.start_worker(stub={"step_time_s": 0.01})
    mill.start_worker("w2", stub={"step_time_s": 0.01})
    job = {"prompt": "x", "max_tokens": 100, "seed": 7}
    sent = mill.celery.send_task(keys.TASK_NAME, kwargs={"job": job}, queue=QUEUE)
    mill.wait_tokens(sent.id, 2)

    replies = mill.celery.control.revoke(sent.id, reply=True, timeout=60, limit=2)

    assert len(replies) == 2
    assert sent.state == "STARTED"
    assert sent.get(timeout=60)["status"] == "completed"
    assert mill.state(sent.id) is JobState.COMPLETED
