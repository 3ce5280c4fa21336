"""The inbox scripts hand documents out once per lease, in order, and lose none."""

from __future__ import annotations

import json
from typing import Any

import pytest

from batchmill.producer.errors import JobRejected
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls import inbox as inbox_calls
from batchmill.producer.protocol.calls.inbox import MAX_DOCUMENT_BYTES, TakenDocument
from batchmill.producer.protocol.records import DeadLetterKind
from batchmill.producer.store import inbox_document

LEASE_MS = 60_000


def push(bench: Any, *prompts: str) -> None:
    for prompt in prompts:
        bench.redis.lpush(keys.INBOX, json.dumps({"prompt": prompt}))


def take(bench: Any, **limits: Any) -> list[TakenDocument]:
    return list(bench.store.run(inbox_calls.take(limits.pop("lease_ms", LEASE_MS), **limits)))


def prompts(documents: list[TakenDocument]) -> list[str]:
    return [json.loads(document.content)["prompt"] for document in documents]


def test_documents_pushed_on_the_left_are_taken_in_order(bench: Any) -> None:
    push(bench, "first", "second")
    bench.redis.rpush(keys.INBOX, '{"prompt": "before all others"}')

    assert prompts(take(bench)) == ["before all others", "first", "second"]
    assert take(bench) == []


def test_a_document_that_is_not_settled_is_handed_out_again_under_its_id(bench: Any) -> None:
    push(bench, "one")
    (first,) = take(bench)
    bench.redis.zadd(keys.INBOX_TAKEN, {first.id: 1})

    assert take(bench) == [first]
    bench.store.run(inbox_calls.settle(first.id))
    assert bench.store.counts().inbox == 0


def test_a_document_that_is_put_off_comes_again_when_it_is_due(bench: Any) -> None:
    push(bench, "one")
    (first,) = take(bench)
    bench.store.run(inbox_calls.settle(first.id, retry_in_ms=0))

    assert take(bench) == [first]
    bench.store.run(inbox_calls.settle(first.id, retry_in_ms=LEASE_MS))
    assert take(bench) == []
    assert bench.store.counts().inbox == 1


def test_many_documents_of_a_full_queue_make_way_for_others(bench: Any) -> None:
    push(bench, "full 1", "full 2", "full 3", "another's")
    documents = take(bench, max_taken=3)
    for document in documents:
        bench.store.run(inbox_calls.settle(document.id, retry_in_ms=LEASE_MS, max_waiting=2))
        bench.store.run(inbox_calls.settle(document.id, retry_in_ms=LEASE_MS, max_waiting=2))

    assert prompts(take(bench)) == ["another's", "full 1"]
    assert bench.store.counts().inbox == 4


def test_waiting_for_a_document_does_not_take_it_out_of_the_inbox(bench: Any) -> None:
    assert bench.store.inbox_wait(0.01) is False
    push(bench, "one", "two")
    assert bench.store.inbox_wait(1) is True

    assert bench.store.counts().inbox == 2
    assert prompts(take(bench)) == ["one", "two"]


def test_more_than_may_be_taken_waits_in_the_inbox(bench: Any) -> None:
    push(bench, *map(str, range(5)))

    assert prompts(take(bench, max_taken=3)) == ["0", "1", "2"]
    assert take(bench, max_taken=3) == []
    assert bench.redis.llen(keys.INBOX) == 2


def test_a_document_that_is_too_long_is_a_dead_letter_with_its_beginning(bench: Any) -> None:
    bench.redis.lpush(keys.INBOX, b"x" * (MAX_DOCUMENT_BYTES + 1))
    push(bench, "after it")

    assert prompts(take(bench)) == ["after it"]
    (letter,) = bench.store.dead_letters()
    assert letter.reason.startswith(f"too_large: the document has {MAX_DOCUMENT_BYTES + 1} bytes")
    assert (letter.kind, letter.source) == (DeadLetterKind.MESSAGE, keys.INBOX)
    assert letter.payload == b"x" * 4096


def test_a_document_of_the_greatest_prompt_fully_escaped_is_short_enough() -> None:
    prompt = "\x00" * (1 << 20)
    content = json.dumps({"prompt": prompt}).encode()

    assert len(content) < MAX_DOCUMENT_BYTES
    assert inbox_document.read_document(content).job.prompt == prompt


@pytest.mark.parametrize(
    ("content", "code", "message"),
    [
        (b"", "not_json", "not JSON"),
        (b'{"prompt": "x"', "not_json", "not JSON"),
        (b'{"prompt": "\xff"}', "not_json", "not JSON"),
        (b'{"prompt": "x", "temperature": NaN}', "not_json", "NaN"),
        (b'{"prompt": "x", "temperature": -Infinity}', "not_json", "-Infinity"),
        (b'{"prompt": "x", "seed": ' + b"9" * 5000 + b"}", "not_json", "not JSON"),
        (b'{"prompt": ' + b"[" * 100_000 + b"}", "not_json", "not JSON"),
        (b'["x"]', "not_an_object", "not an object"),
        (b'{"prompt": "x", "prompt": "y"}', "duplicate_key", "prompt is given twice"),
        (b'{"prompt": "x", "metadata": {"s": "1", "s": "2"}}', "duplicate_key", "a key is given"),
        (b'{"prompt": "x", "max_tokns": 3}', "invalid_request", "max_tokns is not a parameter"),
        (b'{"prompt": "x", "id": "a.b"}', "invalid_request", "id: a job id is a string"),
        (b'{"prompt": "x", "id": 7}', "invalid_request", "id: a job id is a string"),
        (b'{"prompt": "\\ud800"}', "invalid_request", "lone surrogate"),
        (b'{"prompt": "x", "\\ud800": 1}', "invalid_request", "unicode"),
        (b'{"prompt": "x", "model": "a b"}', "invalid_request", "model"),
        (b'{"prompt": "x", "beam_width": 3}', "invalid_request", "beam_width"),
        (b"{}", "invalid_request", "exactly one of prompt and messages"),
    ],
)
def test_a_document_that_cannot_be_a_job_is_refused_with_a_reason(
    content: bytes, code: str, message: str
) -> None:
    with pytest.raises(JobRejected) as caught:
        inbox_document.read_document(content)

    assert caught.value.code == code
    assert message in str(caught.value)
    str(caught.value).encode()


def test_a_key_of_a_megabyte_makes_no_message_of_a_megabyte() -> None:
    content = json.dumps({"prompt": "x", "k" * (1 << 20): 1}).encode()
    with pytest.raises(JobRejected) as caught:
        inbox_document.read_document(content)
    assert len(str(caught.value)) < 400


def test_a_call_repeated_after_a_lost_reply_hands_out_the_same_documents(
    bench: Any,
) -> None:
    push(bench, "one")
    bench.redis.lpush(keys.INBOX, b"x" * (MAX_DOCUMENT_BYTES + 1))
    push(bench, "two")
    call = inbox_calls.take(LEASE_MS)
    lost = bench.store.run(call)
    push(bench, "three", "four")

    documents = bench.store.run(call)

    assert documents[: len(lost)] == lost
    assert prompts(documents) == ["one", "two", "three", "four"]
    assert len(bench.store.dead_letters()) == 1
    assert bench.store.counts().inbox == 4


def test_a_worker_that_lost_its_lease_cannot_put_a_document_off(bench: Any) -> None:
    push(bench, "one")
    (late,) = take(bench)
    bench.redis.zadd(keys.INBOX_TAKEN, {late.id: 1})
    (held,) = take(bench, lease_ms=2 * LEASE_MS)

    bench.store.run(
        inbox_calls.settle(late.id, 1000, max_waiting=0, held_until_ms=late.held_until_ms)
    )
    assert take(bench) == []
    assert bench.redis.zscore(keys.INBOX_TAKEN, held.id) == held.held_until_ms

    bench.store.run(
        inbox_calls.settle(held.id, 1000, max_waiting=0, held_until_ms=held.held_until_ms)
    )
    assert prompts(take(bench)) == ["one"]


class DyingWorker:
    """Takes documents and settles them, until one kills it."""

    def __init__(self, bench: Any, session: str, *, connected_ms: int = 10_000) -> None:
        self._bench = bench
        self._limits = {"session": session, "connected_ms": connected_ms}

    def work(self) -> list[str]:
        """Return the prompts of the documents that were settled."""
        settled: list[str] = []
        while documents := take(self._bench, **self._limits):
            for document in documents:
                (prompt,) = prompts([document])
                if prompt == "deadly":
                    self._die()
                    return settled
                self._bench.store.run(inbox_calls.settle(document.id))
                settled.append(prompt)
        return settled

    def _die(self) -> None:
        taken = self._bench.redis.zrange(keys.INBOX_TAKEN, 0, -1)
        self._bench.redis.zadd(keys.INBOX_TAKEN, dict.fromkeys(taken, 1))


def test_a_document_that_three_workers_did_not_survive_is_a_dead_letter(bench: Any) -> None:
    push(bench, "first", "deadly", "second", "third")

    assert DyingWorker(bench, "a.1").work() == ["first"]
    settled = [prompt for name in "bcde" for prompt in DyingWorker(bench, f"{name}.1").work()]

    assert sorted(settled) == ["second", "third"]
    (letter,) = bench.store.dead_letters()
    assert json.loads(letter.payload)["prompt"] == "deadly"
    assert letter.reason.startswith("delivery_limit: 3 workers were lost")
    assert bench.store.counts().inbox == 0
    assert not bench.redis.exists(keys.INBOX_TAKERS)


def test_a_document_is_not_blamed_for_a_worker_that_lives(bench: Any) -> None:
    push(bench, "deadly")
    with bench.redis.pubsub() as connection:
        connection.subscribe(keys.session_channel("a.1"))
        for _ in range(5):  # its leases lapse, but it is still connected
            assert DyingWorker(bench, "a.1").work() == []
    assert not bench.store.dead_letters()


def test_workers_that_may_not_judge_leave_a_document_to_one_that_may(bench: Any) -> None:
    push(bench, "deadly", "innocent")
    assert DyingWorker(bench, "a.1", connected_ms=0).work() == []

    # Redis, or the workers, have just started: the one that had it may only have lost touch.
    for number in range(5):
        assert take(bench, session=f"b.{number}", connected_ms=4000) == []
    assert not bench.store.dead_letters()
    settled = [prompt for name in "cdef" for prompt in DyingWorker(bench, f"{name}.1").work()]
    assert settled == ["innocent"]
    assert len(bench.store.dead_letters()) == 1
