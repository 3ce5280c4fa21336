"""The inbox: jobs pushed as plain JSON, through real workers."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

from batchmill.producer.protocol import keys
from batchmill.producer.protocol.records import DeadLetter, DeadLetterKind
from batchmill.producer.protocol.replies import JobState

from ..conftest import Mill, stored_result


def push(mill: Mill, **document: Any) -> None:
    mill.store.client.lpush(keys.INBOX, json.dumps(document))


def wait_for_records(mill: Mill, *job_ids: str) -> None:
    for job_id in job_ids:
        mill.wait_for(partial(mill.store.state, job_id), f"the record of {job_id}")


def refusals(mill: Mill) -> list[DeadLetter]:
    """Return the documents that were refused, without what a sweep has set aside."""
    return [letter for letter in mill.store.dead_letters() if letter.source == keys.INBOX]


def submitted(mill: Mill) -> int:
    return int(mill.store.counts().totals.get("submitted", 0))


def test_a_pushed_document_becomes_a_job_of_its_id(
    running_mill: Mill, reference: Callable[..., Any]
) -> None:
    push(running_mill, id="order-17", prompt="count", max_tokens=9, seed=7, metadata={"a": "b"})

    wait_for_records(running_mill, "order-17")
    (record,) = running_mill.wait_ended("order-17")

    result = stored_result(record)
    assert record.state is JobState.COMPLETED
    assert (result["text"], result["metadata"]) == (reference("count", 9)[1], {"a": "b"})
    running_mill.wait_for(lambda: running_mill.store.counts().inbox == 0, "an empty inbox")
    # No Celery result was requested; it would be one more copy of the output.
    assert not running_mill.store.client.exists("celery-task-meta-order-17")


def test_a_document_repeated_with_its_id_makes_one_job(running_mill: Mill) -> None:
    before = submitted(running_mill)
    for _ in range(3):
        push(running_mill, id="again", prompt="once", max_tokens=3)
    push(running_mill, id="after-again", prompt="last")

    wait_for_records(running_mill, "after-again")
    assert submitted(running_mill) == before + 2
    assert not refusals(running_mill)


def test_an_id_of_another_job_is_refused_and_that_job_is_untouched(running_mill: Mill) -> None:
    push(running_mill, id="mine", prompt="mine", max_tokens=3)
    wait_for_records(running_mill, "mine")
    push(running_mill, id="mine", prompt="yours", max_tokens=3)

    running_mill.wait_for(partial(refusals, running_mill), "the dead letter")
    (letter,) = refusals(running_mill)
    assert letter.reason.startswith("duplicate_id: id: mine is the id of another job")
    assert letter.id != "mine"
    assert json.loads(running_mill.record("mine").document)["prompt"] == "mine"
    running_mill.store.dead_letter_drop(letter.id)


def test_a_job_of_another_model_goes_to_that_models_queue(running_mill: Mill) -> None:
    push(running_mill, id="elsewhere", prompt="x", model="other", priority="high")

    wait_for_records(running_mill, "elsewhere")
    record = running_mill.record("elsewhere")
    assert (record.state, record.queue) == (JobState.QUEUED, "batchmill.other.high")
    assert running_mill.store.client.llen(keys.announced("batchmill.other.high")) == 1
    running_mill.store.cancel("elsewhere")
    running_mill.store.client.delete(keys.announced("batchmill.other.high"))


def test_bad_documents_become_dead_letters_and_the_next_one_is_run(
    running_mill: Mill,
) -> None:
    client = running_mill.store.client
    push(running_mill, prompt="x", idempotency_key="inbox-key")
    bad = {
        "not_json": b"{",
        "not_an_object": b"[]",
        "duplicate_key": b'{"prompt": "x", "prompt": "x"}',
        "invalid_request: max_tokens": b'{"prompt": "x", "max_tokens": 0}',
        "invalid_request: no_such_field": b'{"prompt": "x", "no_such_field": 1}',
        "invalid_request: webhook": b'{"prompt": "x", "webhook": "https://127.0.0.1/hook"}',
        "unsupported_parameter": b'{"prompt": "x", "use_beam_search": true}',
        "idempotency_conflict": b'{"prompt": "y", "idempotency_key": "inbox-key"}',
        "unusable_record": b'{"prompt": "x", "id": "occupied"}',
        "unusable_record: a key": b'{"prompt": "x", "idempotency_key": "occupied"}',
    }
    # In one step, because the next sweep sets aside what is not a record.
    with client.pipeline(transaction=True) as together:
        together.set(keys.job("occupied"), "not a record")
        together.set(keys.idempotency("default", "occupied"), "not an entry")
        together.lpush(keys.INBOX, *bad.values())
        together.execute()
    push(running_mill, id="after-the-bad", prompt="good")

    wait_for_records(running_mill, "after-the-bad")
    assert running_mill.wait_ended("after-the-bad")[0].state is JobState.COMPLETED
    letters = {letter.payload: letter for letter in refusals(running_mill)}
    assert set(letters) == set(bad.values())
    for reason, content in bad.items():
        assert letters[content].reason.startswith(reason), letters[content].reason
        assert letters[content].source == keys.INBOX
        assert letters[content].kind is DeadLetterKind.MESSAGE
    client.delete(keys.job("occupied"), keys.idempotency("default", "occupied"))
    for letter in refusals(running_mill):
        running_mill.store.dead_letter_drop(letter.id)


def test_a_producer_finds_the_refusal_under_its_id(running_mill: Mill) -> None:
    push(running_mill, id="watched", prompt="x", temperature="hot")

    running_mill.wait_for(lambda: running_mill.store.dead_letter("watched"), "the dead letter")
    letter = running_mill.store.dead_letter("watched")
    assert letter is not None
    assert "temperature" in letter.reason
    running_mill.store.dead_letter_drop("watched")


def test_a_refusal_never_replaces_an_older_one_with_its_id(running_mill: Mill) -> None:
    store = running_mill.store
    for temperature in ("hot", "hotter", "hot"):
        push(running_mill, id="twice", prompt="x", temperature=temperature)
    push(running_mill, id="after-twice", prompt="x")

    wait_for_records(running_mill, "after-twice")
    letters = {letter.id: json.loads(letter.payload) for letter in refusals(running_mill)}
    assert letters.pop("twice")["temperature"] == "hot"
    assert [document["temperature"] for document in letters.values()] == ["hotter"]
    for letter_id in ("twice", *letters):
        store.dead_letter_drop(letter_id)
