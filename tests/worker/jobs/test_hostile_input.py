"""Input of a careless or hostile producer: the producer refuses it by name, and so does the worker
if it is forged into Redis. None of it stops a worker or harms another job."""

from __future__ import annotations

import base64
import itertools
import json
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from batchmill.producer import Client, JobFields, JobRejected
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.replies import JobState
from batchmill.producer.settings import ProducerSettings

from ..conftest import Mill, stored_error
from .hostile_fields import REFUSED_FIELDS, TAKEN_PROMPTS, nested
from .hostile_messages import FORGED_BODIES, FORGED_HEADERS, RAW_ELEMENTS

QUEUE = "batchmill.demo.normal"


def job_fields(changes: dict[str, Any]) -> dict[str, Any]:
    fields = {"prompt": "x", "max_tokens": 2, **changes}
    return {name: value for name, value in fields.items() if value is not None}


@pytest.fixture(scope="module")
def client(running_mill: Mill) -> Iterator[Client]:
    with Client(running_mill.url, settings=ProducerSettings()) as client:
        yield client


@pytest.mark.parametrize("what", REFUSED_FIELDS)
def test_the_producer_refuses_a_bad_field_by_name(client: Client, what: str) -> None:
    changes, param = REFUSED_FIELDS[what]

    with pytest.raises(JobRejected) as caught:
        client.submit(cast("JobFields", job_fields(changes)))

    named = caught.value.param
    assert named == param or (param is not None and str(named).startswith(f"{param}.")), named
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize("prompt", TAKEN_PROMPTS)
def test_strange_text_is_accepted(running_mill: Mill, client: Client, prompt: str) -> None:
    assert client.submit(prompt=prompt, max_tokens=2).result(timeout_s=20).text


class Forger:
    """Writes records and messages into Redis that only batchmill should write."""

    def __init__(self, mill: Mill) -> None:
        self.mill = mill
        self.redis = mill.store.client
        self._numbers = itertools.count()

    def record(self, **changes: Any) -> str:
        """Write a record like `submit`, with changes (None removes a field); return its id."""
        job_id = f"forged-{next(self._numbers)}"
        now = 1_800_000_000_000
        fields = {
            "id": job_id,
            "v": 1,
            "model": "demo",
            "queue": QUEUE,
            "state": "queued",
            "doc": '{"prompt": "x", "max_tokens": 2, "seed": 1}',
            "enqueued_at_ms": now,
            "announced_at_ms": now,
            "fence": 0,
            "attempts": 0,
            "result_ttl_ms": 60_000,
            **changes,
        }
        kept: dict[Any, Any] = {name: value for name, value in fields.items() if value is not None}
        self.redis.hset(keys.job(job_id), mapping=kept)
        return job_id

    def announce(self, job_id: str) -> None:
        """Index a job as waiting, and push its message onto the queue."""
        self.redis.zadd(keys.QUEUES, {QUEUE: 1})
        self.redis.zadd(keys.queued(QUEUE), {job_id: 1})
        self.push(self.message(job_id))

    def message(self, job_id: str, **changes: Any) -> dict[str, Any]:
        message = {
            "body": json.dumps([[], {"job": job_id, "v": 1}, {}]),
            "content-type": "application/json",
            "content-encoding": "utf-8",
            "headers": {"task": keys.TASK_NAME, "id": job_id, "ignore_result": True},
            "properties": {
                "delivery_info": {"exchange": "", "routing_key": QUEUE},
                "delivery_tag": f"forged-tag-{next(self._numbers)}",
            },
        }
        for part, value in changes.items():
            if part in ("headers", "properties"):
                message[part] = {**message[part], **value}  # type: ignore[dict-item]
            else:
                message[part] = value
        return message

    def push(self, *messages: Any) -> None:
        self.redis.lpush(QUEUE, *(json.dumps(message) for message in messages))

    def letters(self) -> dict[str, str]:
        """Return the reasons of the dead letters, by id."""
        return {letter.id: letter.reason for letter in self.mill.store.dead_letters(limit=1000)}


@pytest.fixture(scope="module")
def forger(running_mill: Mill) -> Forger:
    return Forger(running_mill)


def assert_worker_still_serves(mill: Mill, worker_pid: int) -> None:
    """Check that a good job completes in the same worker process."""
    job_id = mill.submit("after the bad input")
    (record,) = mill.wait_ended(job_id)
    assert record.state is JobState.COMPLETED
    (worker,) = mill.workers
    assert (worker.process.pid, worker.process.poll()) == (worker_pid, None)


def test_documents_forged_into_records_fail_at_the_worker_without_a_retry(
    running_mill: Mill, forger: Forger
) -> None:
    (worker,) = running_mill.workers
    documents = {what: job_fields(changes) for what, (changes, _) in REFUSED_FIELDS.items()}
    raw = {what: json.dumps(fields) for what, fields in documents.items()}
    raw |= {
        "not JSON": "{",
        "cut short": '{"prompt": "x"',
        "not an object": "[1]",
        "empty": "",
        "nested 100,000 deep": '{"prompt": ' + "[" * 100_000,
        "a number of 100,000 digits": '{"prompt": "x", "seed": ' + "9" * 100_000 + "}",
        "bytes that are not UTF-8": b'{"prompt": "\xff\xfe"}',  # type: ignore[dict-item]
    }
    ids = {what: forger.record(doc=document) for what, document in raw.items()}
    for job_id in ids.values():
        forger.announce(job_id)

    records = dict(zip(ids, running_mill.wait_ended(*ids.values()), strict=True))

    ends = {}
    for what, record in records.items():
        error = stored_error(record)
        ends[what] = (record.state, error["code"], error["retryable"], record.attempts)
        assert len(error["message"]) < 700, what
    assert ends == dict.fromkeys(ids, (JobState.FAILED, "invalid_request", False, 1))
    assert_worker_still_serves(running_mill, worker.process.pid)


#: Description of a bad record -> changes of its fields.
UNUSABLE_RECORDS: dict[str, dict[str, Any]] = {
    "an unknown state": {"state": "running"},
    "no queue": {"queue": None},
    "no document": {"doc": None},
    "no time to live": {"result_ttl_ms": None},
    "a time to live that is not a number": {"result_ttl_ms": "soon"},
    "a fence that is not a number": {"fence": "first"},
    "a fence beyond 64 bits": {"fence": "9" * 30},
    "a fence that is a fraction": {"fence": "0.5"},
    "attempts that are not a number": {"attempts": "many"},
    "counts that are not numbers": {"suspect": "x", "attempts": "nan"},
    "no time of submission": {"enqueued_at_ms": None},
    "a start that is not a number": {"started_at_ms": "then"},
}


def test_records_with_forged_fields_become_dead_letters_and_end(
    running_mill: Mill, forger: Forger
) -> None:
    (worker,) = running_mill.workers
    ids = {what: forger.record(**changes) for what, changes in UNUSABLE_RECORDS.items()}
    odd = forger.record()
    forger.redis.set(keys.tokens(odd), b"12345")
    for job_id in [*ids.values(), odd]:
        forger.announce(job_id)

    running_mill.wait_for(lambda: {*ids.values(), odd} <= set(forger.letters()), "the letters")

    letters = forger.letters()
    for what, job_id in {**ids, "tokens of an odd length": odd}.items():
        assert running_mill.state(job_id) is JobState.FAILED, what
        error = json.loads(forger.redis.hget(keys.job(job_id), "error") or "")
        assert error["code"] == "unusable_record", what
        assert letters[job_id].startswith("unusable_record: "), what
        assert forger.redis.ttl(keys.job(job_id)) > 0, what
    assert_worker_still_serves(running_mill, worker.process.pid)


def test_keys_of_a_wrong_type_become_dead_letters_and_leave_the_indexes(
    running_mill: Mill, forger: Forger
) -> None:
    (worker,) = running_mill.workers
    forger.redis.set(keys.job("a-string"), "no record")
    forger.redis.lpush(keys.job("a-list"), "no record")
    forger.redis.set(keys.job("leased"), "no record")
    tokens = forger.record()
    forger.redis.hset(keys.tokens(tokens), "a", "b")
    forger.redis.zadd(keys.LEASES, {"leased": 1, "of-nothing": 1})
    forger.redis.set(keys.job("late"), "no record")
    forger.redis.zadd(keys.DEADLINES, {"late": 1})
    for job_id in ("a-string", "a-list", tokens):
        forger.announce(job_id)

    expected = {"a-string", "a-list", "leased", "late", tokens}
    running_mill.wait_for(lambda: expected <= set(forger.letters()), "the dead letters")

    reasons = forger.letters()
    assert all(reasons[name].startswith("unusable_record: ") for name in expected)
    assert forger.redis.zrange(keys.LEASES, 0, -1) == []
    assert forger.redis.zrange(keys.DEADLINES, 0, -1) == []
    assert not {b"a-string", b"a-list"} & set(forger.redis.zrange(keys.queued(QUEUE), 0, -1))
    assert_worker_still_serves(running_mill, worker.process.pid)


def test_keys_overwritten_under_running_jobs_end_only_those_jobs(
    running_mill: Mill, forger: Forger
) -> None:
    (worker,) = running_mill.workers
    victims = [running_mill.submit(f"victim {n}", max_tokens=3000) for n in range(4)]
    for job_id in victims:
        running_mill.wait_tokens(job_id, 1)
    mate = running_mill.submit("mate", max_tokens=300)
    forger.redis.set(keys.job(victims[0]), "overwritten")
    forger.redis.delete(keys.job(victims[1]))
    forger.redis.set(keys.job(victims[1]), "overwritten")
    forger.redis.delete(keys.tokens(victims[2]))
    forger.redis.hset(keys.tokens(victims[2]), "a", "b")
    forger.redis.hset(keys.job(victims[3]), "fence", "none")

    (record,) = running_mill.wait_ended(mate)

    assert record.state is JobState.COMPLETED
    running_mill.wait_for(
        lambda: all(job_id in forger.letters() for job_id in victims[1:3]), "the dead letters"
    )
    running_mill.wait_for(
        lambda: not running_mill.store.counts().in_progress, "the victims to be released"
    )
    assert_worker_still_serves(running_mill, worker.process.pid)


class Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str, str]]:
        return open, (self.path, "w")


def test_a_plain_task_whose_keys_are_in_use_fails_for_its_sender(
    running_mill: Mill, forger: Forger
) -> None:
    (worker,) = running_mill.workers
    forger.redis.set(keys.idempotency("default", "in-use"), "no entry")
    job = {"prompt": "x", "idempotency_key": "in-use"}

    sent = running_mill.celery.send_task(keys.TASK_NAME, kwargs={"job": job}, queue=QUEUE)

    with pytest.raises(Exception, match="unusable_record"):
        sent.get(timeout=60)
    assert_worker_still_serves(running_mill, worker.process.pid)


def test_forged_messages_do_not_stop_the_worker(
    running_mill: Mill, forger: Forger, tmp_path: Path
) -> None:
    (worker,) = running_mill.workers
    elements = [forger.message(f"env-{n}", headers=each) for n, each in enumerate(FORGED_HEADERS)]
    elements += [
        forger.message(f"body-{n}", body=json.dumps(each)) for n, each in enumerate(FORGED_BODIES)
    ]
    elements += [
        forger.message("p-1", properties={"priority": "high", "reply_to": {}, "delivery_mode": []}),
        forger.message("p-2", properties={"correlation_id": nested(20)}),
        forger.message("p-3", properties={"delivery_tag": "x" * 100_000}),
        forger.message("p-4", properties={"delivery_info": {"exchange": "x", "routing_key": "y"}}),
    ]
    touched = tmp_path / "owned"
    code = base64.b64encode(pickle.dumps(Touch(str(touched)))).decode()
    elements += [
        forger.message(
            f"code-{n}",
            body=code,
            properties={"body_encoding": "base64"},
            **{"content-type": f"application/{name}"},
        )
        for n, name in enumerate(("x-python-serialize", "x-yaml", "x-msgpack", "data", "json"))
    ]
    elements += [forger.message("task", headers={"task": "os.system"})]
    forger.push(*elements)
    forger.redis.lpush(QUEUE, *RAW_ELEMENTS)

    assert_worker_still_serves(running_mill, worker.process.pid)
    running_mill.wait_for(lambda: forger.redis.llen(QUEUE) == 0, "an empty queue")
    assert not touched.exists()
    # kombu's `unacked` keeps none of the messages either.
    running_mill.wait_for(lambda: forger.redis.hlen("unacked") == 0, "no unacknowledged message")


def test_forged_heartbeats_and_registries_do_not_stop_the_worker(
    running_mill: Mill, forger: Forger
) -> None:
    (worker,) = running_mill.workers
    forger.redis.sadd(keys.WORKERS, *(f"forged-{number}" for number in range(1, 5)))
    beat = json.loads(forger.redis.get(keys.worker("w1@test")) or "")
    forger.redis.set(keys.worker("forged-4"), json.dumps(beat | {"model": {"a": []}}))
    forger.redis.set(keys.worker("forged-1"), "not JSON")
    forger.redis.set(keys.worker("forged-2"), "[" * 100_000)
    forger.redis.set(keys.worker("forged-3"), '{"name": 3}')
    forger.redis.zadd(keys.QUEUES, {"celery": 1, "batchmill:jobs": 1})
    forger.redis.zadd(keys.CELERY_ENDS, {"nobody": 1, "a b\n": 1})
    forger.redis.zadd(keys.INBOX_TAKEN, {"nothing": 1})
    forger.redis.lpush(keys.INBOX, json.dumps({"prompt": "no model", "id": "without-model"}))

    running_mill.wait_for(
        lambda: running_mill.store.state("without-model"), "the inbox to continue"
    )
    running_mill.wait_for(
        lambda: not forger.redis.exists(keys.CELERY_ENDS, keys.INBOX_TAKEN),
        "the ends to be reported",
    )
    assert [info.name for info in running_mill.store.list_workers()] == ["w1@test"]
    assert_worker_still_serves(running_mill, worker.process.pid)
    forger.redis.zrem(keys.QUEUES, "celery", "batchmill:jobs")
