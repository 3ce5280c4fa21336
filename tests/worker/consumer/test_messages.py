"""Queue elements that are not jobs become dead letters, or are dropped."""

from __future__ import annotations

import base64
import json

import pytest

from batchmill.producer.job.document import GenerationJob
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.records import DeadLetterKind
from batchmill.producer.protocol.replies import JobState
from batchmill.producer.settings import ProducerSettings
from batchmill.producer.store.submission import prepare

from ..announcements import QUEUE, announcement
from ..conftest import Mill

MALFORMED = {
    "not_json": b"{not json",
    "not_a_message": b"[1, 2]",
    "no_properties": announcement("x", properties=None),
    "no_delivery_tag": announcement(
        "x", properties={"delivery_info": {"exchange": "", "routing_key": QUEUE}}
    ),
    "no_delivery_info": announcement("x", properties={"delivery_tag": "t1"}),
    "no_headers": announcement("x", headers=None),
    "no_id": announcement("x", headers={"task": keys.TASK_NAME}),
    "no_task": announcement("x", headers={"id": "x"}),
    "unknown_task": announcement("x", headers={"id": "x", "task": "os.system"}),
    "content_type": announcement(
        "x",
        **{"content-type": "application/x-python-serialize"},
        body=base64.b64encode(b"\x80\x04cos\nsystem\n(S'true'\ntR.").decode(),
    ),
    "body_not_json": announcement("x", body='[[], {"job": "x", "v"'),
    "lone_surrogate": announcement("x", headers={"task": keys.TASK_NAME, "id": "x\ud800"}),
    "bad_body": announcement("x", body='{"job": "x"}'),
    "no_body": announcement("x", body=None),
}


def without_content_type() -> bytes:
    message = json.loads(announcement("x"))
    del message["content-type"]
    return json.dumps(message).encode()


def test_malformed_elements_become_dead_letters_and_the_worker_continues(
    running_mill: Mill,
) -> None:
    elements = {**MALFORMED, "content_type ": without_content_type()}
    huge = b"{" + b"x" * 200_000
    running_mill.store.client.lpush(QUEUE, huge)
    running_mill.store.client.lpush(QUEUE, *elements.values())
    job_id = running_mill.submit("after the malformed ones")

    (record,) = running_mill.wait_ended(job_id)

    assert record.state is JobState.COMPLETED
    store = running_mill.store
    num_letters = len(elements) + 1
    running_mill.wait_for(lambda: len(store.dead_letters()) == num_letters, "the dead letters")
    letters = store.dead_letters()
    [cut] = [letter for letter in letters if letter.payload == huge[:65_536]]
    assert "of its 200001 bytes the first 65536 are kept" in cut.reason
    letters.remove(cut)
    assert sorted(letter.reason.partition(":")[0] for letter in letters) == sorted(
        name.strip() for name in elements
    )
    assert {letter.payload for letter in letters} == set(elements.values())
    assert {(letter.kind, letter.source) for letter in letters} == {(DeadLetterKind.MESSAGE, QUEUE)}


def test_a_malformed_broadcast_is_ignored(running_mill: Mill) -> None:
    for malformed in (b"[]", b"{}", b'{"properties": 3}', b"no json"):
        running_mill.store.client.publish("/0.celery.pidbox", malformed)

    replies = running_mill.celery.control.ping(timeout=60, limit=1)
    assert replies == [{"w1@test": {"ok": "pong"}}]


@pytest.mark.parametrize("command", ["pool_grow", "pool_shrink"])
def test_the_size_of_the_pool_is_refused_with_the_reason(running_mill: Mill, command: str) -> None:
    send = getattr(running_mill.celery.control, command)
    (reply,) = send(1, reply=True, timeout=60, limit=1)
    assert "BATCHMILL_MAX_NUM_SEQS" in reply["w1@test"]["error"]


def test_announcements_of_unknown_jobs_are_dropped(running_mill: Mill) -> None:
    running_mill.store.client.lpush(QUEUE, announcement("gen_unknown"))
    job_id = running_mill.submit("after it")
    assert running_mill.wait_ended(job_id)[0].state is JobState.COMPLETED


def test_a_job_of_a_later_version_is_left_for_its_worker(running_mill: Mill) -> None:
    store = running_mill.store
    new = prepare(GenerationJob(prompt="of a later version", priority="low"), ProducerSettings())
    store.client.set(keys.WINDOW, 0)  # so that it is not announced before it has its version
    store.submit(new)
    store.client.hset(keys.job(new.job_id), mapping={"v": 99})
    store.client.delete(keys.WINDOW)
    letters = len(store.dead_letters())

    store.client.lpush(new.queue, announcement(new.job_id))
    refusal = f'"{new.job_id}", "why": "unsupported_version"'
    running_mill.wait_for(lambda: refusal in running_mill.workers[0].log, "the refusal")

    # It is announced again from time to time, not in a busy loop, and the worker still serves.
    others = [running_mill.submit(f"prompt {n}", max_tokens=150) for n in range(3)]
    running_mill.wait_ended(*others)
    assert running_mill.workers[0].log.count(refusal) <= 3
    assert running_mill.state(new.job_id) is JobState.QUEUED
    assert len(store.dead_letters()) == letters
    store.cancel(new.job_id)
