"""Inbox documents while workers die, queues fill up and Redis is full or unreachable."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from redis.exceptions import ConnectionError

from batchmill.producer.errors import PayloadUnreachable
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.replies import JobState
from batchmill.worker.jobs import inbox_mover
from batchmill.worker.jobs.inbox_mover import InboxMover
from batchmill.worker.settings import WorkerSettings

from ...conftest import without_check_processes
from ..conftest import Mill

#: Takes a document as a worker does, submits it if asked to, and is killed.
_DIES_WITH_A_DOCUMENT = """
import os, signal, sys
from batchmill.producer.protocol.calls import inbox as inbox_calls
from batchmill.producer.store import inbox_document
from batchmill.producer.settings import ProducerSettings
from batchmill.producer.store.job_store import JobStore
from batchmill.producer.store.submission import prepare
store = JobStore.from_url(sys.argv[1])
taken = store.run(inbox_calls.take(300))[-1]
if sys.argv[2] == "submitted":
    order = inbox_document.read_document(taken.content)
    store.submit(prepare(order.job, ProducerSettings(), job_id=order.id or taken.id))
print(taken.id, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


def push(mill: Mill, **document: Any) -> None:
    mill.store.client.lpush(keys.INBOX, json.dumps(document))


def wait_for_records(mill: Mill, *job_ids: str) -> None:
    for job_id in job_ids:
        mill.wait_for(partial(mill.store.state, job_id), f"the record of {job_id}")


def submitted(mill: Mill) -> int:
    return int(mill.store.counts().totals.get("submitted", 0))


def test_documents_of_killed_workers_are_neither_lost_nor_doubled(mill: Mill) -> None:
    job_ids = []
    for moment in ("taken", "submitted"):
        push(mill, prompt=f"survives being {moment}", max_tokens=5)
        command = [sys.executable, "-c", _DIES_WITH_A_DOCUMENT, mill.url, moment]
        dead = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert dead.returncode == -signal.SIGKILL, dead.stderr
        job_ids.append(dead.stdout.strip())
    assert mill.store.counts().inbox == 2

    mill.start_worker()

    wait_for_records(mill, *job_ids)
    records = mill.wait_ended(*job_ids)
    mill.wait_for(lambda: mill.store.counts().inbox == 0, "an empty inbox")
    assert {(record.state, record.attempts) for record in records} == {(JobState.COMPLETED, 1)}
    assert submitted(mill) == 2


def test_two_workers_on_one_inbox_submit_each_document_once(mill: Mill) -> None:
    mill.start_worker("w1")
    mill.start_worker("w2")
    names = [f"doc-{number}" for number in range(80)]
    for name in names:
        push(mill, id=name, prompt=name, max_tokens=2)

    wait_for_records(mill, *names)
    records = mill.wait_ended(*names)
    assert {record.state for record in records} == {JobState.COMPLETED}
    mill.wait_for(lambda: mill.store.counts().inbox == 0, "an empty inbox")
    assert submitted(mill) == 80
    assert not mill.store.dead_letters()


def new_mover(mill: Mill) -> InboxMover:
    settings = WorkerSettings(broker_url=mill.url, engine="stub")
    return InboxMover(settings, mill.store, "w1.0a", lambda: 0.0)


def test_a_document_is_kept_if_the_connection_breaks_while_it_is_submitted(
    mill: Mill, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose_reply(*_: Any) -> Any:
        monkeypatch.setattr(mill.store, "submit", submit)
        raise ConnectionError("connection lost")

    submit = mill.store.submit
    monkeypatch.setattr(mill.store, "submit", lose_reply)
    monkeypatch.setattr(inbox_mover, "_LEASE_MS", 50)
    mover = new_mover(mill)
    push(mill, id="kept", prompt="x", max_tokens=2)

    with pytest.raises(ConnectionError):
        mover.move_documents()

    def moved() -> object:
        mover.move_documents()
        return mill.store.state("kept")

    mill.wait_for(moved, "the lease on the document to expire")
    assert mill.state("kept") is JobState.QUEUED
    assert not mill.store.dead_letters()


def test_documents_wait_while_their_queue_is_full(mill: Mill) -> None:
    mill.start_worker(max_queue_depth=1)
    push(mill, id="first", prompt="x", model="other")
    push(mill, id="second", prompt="x", model="other")
    push(mill, id="third", prompt="a job of a model that is served", max_tokens=2, model="demo")

    wait_for_records(mill, "first", "third")
    mill.wait_for(lambda: "inbox_waits" in mill.workers[0].log, "the second to wait")
    assert mill.store.state("second") is None
    mill.store.cancel("first")
    wait_for_records(mill, "second")


def test_a_document_waits_while_its_structure_cannot_be_checked(
    mill: Mill, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbox_mover, "_RETRY_MS", 50)
    mover = new_mover(mill)
    push(mill, id="kept", prompt="x", max_tokens=2, structured_outputs={"regex": "kept"})

    with without_check_processes():
        mover.move_documents()
    assert mill.store.state("kept") is None

    def moved() -> object:
        mover.move_documents()
        return mill.store.state("kept")

    mill.wait_for(moved, "the document to be tried again")
    assert mill.state("kept") is JobState.QUEUED
    assert not mill.store.dead_letters()


def test_a_repeated_document_waits_while_the_known_one_cannot_be_read(
    mill: Mill, monkeypatch: pytest.MonkeyPatch
) -> None:
    mover = new_mover(mill)
    push(mill, id="known", prompt="x", max_tokens=2)
    mover.move_documents()
    away = replace(mill.record("known"), unreadable=PayloadUnreachable("it took too long"))
    monkeypatch.setattr(mill.store, "load", lambda _: away)
    push(mill, id="known", prompt="x", max_tokens=2)

    mover.move_documents()

    assert mill.store.counts().inbox == 1
    assert not mill.store.dead_letters()


def test_documents_wait_while_redis_is_full(mill: Mill) -> None:
    worker = mill.start_worker()
    client = mill.store.client
    mill.wait_for(lambda: "ready" in worker.log or mill.heartbeat(worker), "the worker")
    worker.send(signal.SIGSTOP)
    for number in range(3):
        push(mill, id=f"full-{number}", prompt="x", max_tokens=2)
    client.config_set("maxmemory", int(client.info("memory")["used_memory"]) // 2)
    worker.send(signal.SIGCONT)
    mill.wait_for(lambda: '"thread": "inbox"' in worker.log, "the worker to notice the full server")
    assert all(mill.store.state(f"full-{number}") is None for number in range(3))

    client.config_set("maxmemory", 0)

    names = [f"full-{number}" for number in range(3)]
    wait_for_records(mill, *names)
    assert {record.state for record in mill.wait_ended(*names)} == {JobState.COMPLETED}
