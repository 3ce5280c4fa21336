"""What Redis has accepted is run, and what an operator revoked can be retried."""

from __future__ import annotations

from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls.jobs import retry
from batchmill.producer.protocol.calls.new_job import QueueLimits
from batchmill.producer.protocol.replies import JobState, RetryStatus

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
    assert accepted.get(timeout=40)["status"] == "completed"


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
