"""A plain Celery task is in Redis at any moment, from its sender to its record."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls import celery_tasks
from batchmill.producer.protocol.replies import JobState

from ..announcements import QUEUE
from ..conftest import Mill

JOB = {"prompt": "x", "max_tokens": 4, "seed": 7}


def send(mill: Mill, fields: dict[str, Any] | None = None, **options: Any) -> Any:
    kwargs = {"job": JOB | (fields or {})}
    return mill.celery.send_task(keys.TASK_NAME, kwargs=kwargs, queue=QUEUE, **options)


def test_a_task_that_a_dying_worker_popped_runs_once_on_another(mill: Mill) -> None:
    frozen = mill.start_worker()
    mill.wait_for(lambda: num_blmoves(mill) == 4, "its requests, with that for the inbox")
    frozen.send(signal.SIGSTOP)
    sent = send(mill)
    mill.wait_for(lambda: not mill.store.client.exists(QUEUE), "the pop")
    assert mill.store.load(sent.id) is None
    frozen.end(signal.SIGKILL)

    mill.start_worker("w2")

    assert sent.get(timeout=60)["status"] == "completed"
    assert mill.computed(sent.id) == list(range(4))


def test_a_task_of_a_worker_that_died_with_it_runs_or_is_refused_in_the_end(mill: Mill) -> None:
    sent, deadly = send(mill), send(mill, priority=3)
    lists = [QUEUE, f"{QUEUE}\x06\x163"]
    for name, sessions in zip(lists, ([""], ["a.1", "b.1", "c.1", ""]), strict=True):
        for session in sessions:  # as workers that died before they settled it
            call = celery_tasks.take([name], lease_ms=0, session=session, connected_ms=10_000)
            (task,) = mill.store.run(call)
        mill.store.client.zadd(keys.TASKS_TAKEN, {task.taken_id: 10**15})
    mill.store.client.zadd(keys.TASKS_TAKEN, dict.fromkeys(taken_ids(mill), 1))

    mill.start_worker()

    assert sent.get(timeout=60)["status"] == "completed"
    with pytest.raises(Exception, match=r"given_up.*3 workers died"):
        deadly.get(timeout=60)
    assert mill.computed(sent.id) == list(range(4))
    (letter,) = mill.store.dead_letters()
    assert letter.reason.startswith("given_up")


def taken_ids(mill: Mill) -> Any:
    return mill.store.client.zrange(keys.TASKS_TAKEN, 0, -1)


def num_blmoves(mill: Mill) -> int:
    clients: Any = mill.store.client.client_list()
    return [client["cmd"] for client in clients].count("blmove")


def test_client_jobs_and_plain_tasks_share_a_queue(mill: Mill) -> None:
    """A stream of plain tasks keeps no client's job waiting, nor the other way round."""
    plain = [send(mill, {"max_tokens": 40}) for _ in range(40)]
    mill.start_worker(stub={"step_time_s": 0.01}, max_num_seqs=1)
    mill.wait_for(lambda: mill.store.counts().queued > 20, "their records")
    job_id = mill.submit("a client's", max_tokens=4, tenant="acme")

    (record,) = mill.wait_ended(job_id)

    earlier = [mill.store.state(task.id) for task in plain].count(JobState.COMPLETED)
    assert record.state is JobState.COMPLETED
    assert earlier < 30
    for task in plain:
        mill.store.cancel(task.id)
