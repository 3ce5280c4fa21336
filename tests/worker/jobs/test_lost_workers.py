"""A killed worker's jobs go on elsewhere at once; a worker that lives keeps its jobs.

The leases here are longer than any test may take, so that only the end of a worker's connection can
make another worker continue its jobs.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from celery.exceptions import TaskRevokedError

from batchmill.producer.protocol import keys
from batchmill.producer.protocol.replies import JobState

from ..conftest import Mill, stored_result

QUEUE = keys.queue_name("demo", "normal")
SETTINGS: dict[str, Any] = {"lease_s": 600, "reannounce_grace_s": 600, "takeover": False}
SLOW = {"step_time_s": 0.02}
CHECKPOINT_TOKENS = 8
#: A worker that never stores a document or a plain task that it has taken.
HOLDS_WHAT_IT_TAKES = """
import sys, time
from batchmill.worker.consumer.run_worker import run_worker
from batchmill.worker.consumer.task_mover import TaskMover
from batchmill.worker.jobs.inbox_mover import InboxMover
from batchmill.worker.settings import WorkerSettings
InboxMover._submit = TaskMover._adopt = lambda *_: time.sleep(600)
sys.exit(run_worker(WorkerSettings()))
"""
#: A worker that never reports to Celery an end that it has taken.
HOLDS_ENDS = """
import sys, time
from batchmill.worker.consumer.celery_task import CeleryTask
from batchmill.worker.consumer.missing_results import MissingResults
from batchmill.worker.consumer.run_worker import run_worker
from batchmill.worker.settings import WorkerSettings
CeleryTask._report = MissingResults._write = lambda *_: time.sleep(600)
sys.exit(run_worker(WorkerSettings()))
"""


def start_two_workers(mill: Mill) -> list[Any]:
    return [mill.start_worker(name, stub=SLOW, **SETTINGS) for name in ("w1", "w2")]


def submit_running(mill: Mill, num_jobs: int, max_tokens: int) -> list[str]:
    job_ids = [mill.submit(f"prompt {n}", max_tokens=max_tokens) for n in range(num_jobs)]
    for job_id in job_ids:
        mill.wait_tokens(job_id, 10)
    return job_ids


def test_jobs_of_a_killed_worker_continue_before_their_leases_end(
    mill: Mill, reference: Callable[..., Any]
) -> None:
    workers = start_two_workers(mill)
    job_ids = submit_running(mill, 8, 200)
    owners = [mill.record(job_id).owner for job_id in job_ids]
    victim = max(workers, key=lambda worker: owners.count(worker.name))
    lost = [job_id for job_id, owner in zip(job_ids, owners, strict=True) if owner == victim.name]

    victim.end(signal.SIGKILL)

    for number, record in enumerate(mill.wait_ended(*job_ids)):
        assert stored_result(record)["text"] == reference(f"prompt {number}", 200)[1]
        is_lost = record.id in lost
        causes = ["worker_lost", "completed"] if is_lost else ["completed"]
        assert ([attempt.cause for attempt in record.history], record.suspect) == (causes, 0)
        computed = mill.computed(record.id)
        assert len(computed) - len(set(computed)) <= (CHECKPOINT_TOKENS + 1 if is_lost else 0)


def test_a_message_that_a_killed_worker_had_taken_is_announced_again(mill: Mill) -> None:
    """The window in which kombu loses messages: popped by Redis, never read by the worker."""
    frozen = mill.start_worker(**SETTINGS)
    frozen.send(signal.SIGSTOP)
    job_id = mill.submit()
    mill.wait_for(lambda: mill.store.client.llen(keys.announced(QUEUE)) == 0, "the pop")
    frozen.end(signal.SIGKILL)

    mill.start_worker("w2", **SETTINGS)

    (record,) = mill.wait_ended(job_id)
    assert (record.state, record.attempts) == (JobState.COMPLETED, 1)


def test_a_worker_that_is_frozen_or_cut_off_for_less_than_a_lease_keeps_its_jobs(
    mill: Mill,
) -> None:
    frozen, observer = start_two_workers(mill)
    job_ids = submit_running(mill, 8, 350)

    frozen.send(signal.SIGSTOP)
    frozen_until = time.monotonic() + 5.5  # longer than the session's timeout
    while time.monotonic() < frozen_until:
        mill.store.client.execute_command("CLIENT", "KILL", "TYPE", "normal")
        time.sleep(0.1)
    frozen.send(signal.SIGCONT)
    for _ in range(10):  # both kinds of connections, of both workers
        mill.store.client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
        mill.store.client.execute_command("CLIENT", "KILL", "TYPE", "normal")
        time.sleep(0.1)

    for record in mill.wait_ended(*job_ids, timeout_s=60):
        assert (record.state, record.attempts) == (JobState.COMPLETED, 1)
    assert "jobs_of_lost_workers" not in frozen.log + observer.log


def test_documents_and_plain_tasks_that_a_killed_worker_had_taken_go_on(mill: Mill) -> None:
    client: Any = mill.store.client
    holder = mill.start_worker("w1", program=HOLDS_WHAT_IT_TAKES, **SETTINGS)
    client.lpush(keys.INBOX, json.dumps({"id": "document", "prompt": "x", "max_tokens": 3}))
    job = {"prompt": "y", "max_tokens": 3}
    task = mill.celery.send_task(keys.TASK_NAME, kwargs={"job": job}, queue=QUEUE)
    for taken in (keys.INBOX_TAKEN, keys.TASKS_TAKEN):
        mill.wait_for(partial(client.zcard, taken), "the worker to take it")
        # Its lease of ten seconds must not end within this test.
        (taken_id,) = client.zrange(taken, 0, -1)
        client.zadd(taken, {taken_id: 9e15})
    mill.start_worker("w2", **SETTINGS)

    holder.end(signal.SIGKILL)

    for job_id in ("document", task.id):
        mill.wait_for(partial(mill.store.load, job_id), f"the record of {job_id}")
    for record in mill.wait_ended("document", task.id):
        assert (record.state, record.attempts) == (JobState.COMPLETED, 1)
    assert task.get(timeout=60)["usage"]["completion_tokens"] == 3
    assert not client.exists(keys.INBOX_TAKEN, keys.TASKS_TAKEN, keys.INBOX_TAKERS)
    assert mill.store.dead_letters() == []


def test_ends_that_a_killed_worker_was_reporting_to_celery_are_reported(mill: Mill) -> None:
    client: Any = mill.store.client
    holder = mill.start_worker("w1", program=HOLDS_ENDS, **SETTINGS)
    following = mill.celery.signature("shop.next", queue="shop")
    job = {"prompt": "x", "max_tokens": 3}
    send = partial(mill.celery.send_task, keys.TASK_NAME, queue=QUEUE)
    task = send(kwargs={"job": job}, link=following)
    mill.wait_for(partial(client.hexists, keys.CELERY_END_TAKERS, task.id), "the worker to take it")
    # It ends while it waits, so that no worker but a sweeping one reports it.
    waiting = send(kwargs={"job": job}, countdown=600)
    mill.wait_for(partial(mill.store.load, waiting.id), "its record")
    mill.store.cancel(waiting.id)
    mill.wait_for(partial(client.hexists, keys.CELERY_END_TAKERS, waiting.id), "the sweep")
    for task_id in (task.id, waiting.id):
        client.zadd(keys.CELERY_ENDS, {task_id: 9e15})  # the lease must not end within this test
    mill.start_worker("w2", **SETTINGS)

    holder.end(signal.SIGKILL)

    assert task.get(timeout=20)["usage"]["completion_tokens"] == 3
    with pytest.raises(TaskRevokedError, match="cancelled"):
        waiting.get(timeout=20)
    mill.wait_for(
        lambda: not client.exists(keys.CELERY_ENDS, keys.CELERY_END_TAKERS), "all reports"
    )
    assert client.llen("shop") == 1
