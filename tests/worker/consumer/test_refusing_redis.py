"""A Redis that replies with an error, instead of being gone, ends no worker and no job."""

from __future__ import annotations

import time

import pytest

from batchmill.producer.protocol import keys
from batchmill.producer.protocol.replies import JobState

from ...conftest import RedisServer
from ...support.server_refusals import REFUSALS, refused
from ..conftest import Mill


@pytest.mark.parametrize("word", REFUSALS)
def test_a_worker_outlives_a_server_that_refuses_calls(
    private_redis_server: RedisServer, private_mill: Mill, word: str
) -> None:
    mill = private_mill
    worker = mill.start_worker(stub={"step_time_s": 0.02})
    running = mill.submit(max_tokens=150)
    mill.wait_tokens(running, 8)

    with refused(word, private_redis_server):
        mill.wait_for(lambda: "redis_unavailable" in worker.log, "the refusal to be noticed")
        time.sleep(1)

    (record,) = mill.wait_ended(running)
    assert (record.state, record.attempts, record.suspect) == (JobState.COMPLETED, 1, 0)
    later = mill.submit("later", max_tokens=3)
    assert mill.wait_ended(later)[0].state is JobState.COMPLETED
    assert worker.process.poll() is None


def test_a_worker_outlives_lists_of_another_type(mill: Mill) -> None:
    queue = keys.queue_name("demo", "normal")
    mill.store.client.set(queue, "not a list")
    worker = mill.start_worker()
    mill.wait_for(lambda: '"thread": "tasks"' in worker.log, "the refusal of plain tasks")
    mill.store.client.set(keys.announced(queue), "not a list")
    mill.wait_for(lambda: "Connection to broker lost" in worker.log, "the refusal")
    mill.store.client.delete(queue, keys.announced(queue))

    job_id = mill.submit(max_tokens=3)
    kwargs = {"job": {"prompt": "x", "max_tokens": 3}}
    plain = mill.celery.send_task(keys.TASK_NAME, kwargs=kwargs, queue=queue)
    assert plain.get(timeout=60)["status"] == "completed"

    assert mill.wait_ended(job_id)[0].state is JobState.COMPLETED
    assert worker.process.poll() is None
