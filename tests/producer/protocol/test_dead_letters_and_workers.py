"""Dead letters are kept, listed, dropped and retried; workers are listed while they live."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest

from batchmill.producer.errors import QueueFull
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.outbox import DeliveryOutcome
from batchmill.producer.protocol.records import DeadLetterKind
from batchmill.producer.protocol.replies import HeldJob, ReleaseCause
from batchmill.producer.settings import ProducerSettings
from batchmill.producer.store.dead_letters import retry_dead_letter

from ...support.worker_info import worker_info

QUEUE = keys.queue_name("demo", "normal")
WORKER = worker_info("w1@host", stats={"in_flight": 3})


def add(bench: Any, payload: bytes = b"garbage") -> str:
    letter_id: str = bench.store.dead_letter_add(
        kind=DeadLetterKind.MESSAGE, reason="malformed", payload=payload, source=QUEUE
    )
    return letter_id


def dead_job(bench: Any, document: str) -> None:
    """Submit a job and let it crash until it is given up."""
    bench.submit("j", document=document)
    for _ in range(6):
        held = HeldJob("j", bench.claim("j").fence)
        bench.store.release([held], cause=ReleaseCause.ENGINE_DEATH)
    assert bench.state("j") == "failed"


def test_a_malformed_message_is_kept_byte_for_byte(bench: Any) -> None:
    letter = bench.store.dead_letter(add(bench, b"\xff\x00{"))
    assert (letter.kind, letter.reason) == (DeadLetterKind.MESSAGE, "malformed")
    assert (letter.payload, letter.source) == (b"\xff\x00{", QUEUE)
    assert 0 < bench.redis.ttl(keys.dead(letter.id)) <= keys.DEAD_TTL_S


def test_the_oldest_letters_beyond_the_limit_are_dropped_and_counted(bench: Any) -> None:
    for number in range(7):
        bench.store.dead_letter_add(
            kind=DeadLetterKind.MESSAGE,
            reason="malformed",
            payload=b"x",
            source="q",
            letter_id=f"l{number}",
        )
        bench.redis.zadd(keys.DEAD, {f"l{number}": time.time_ns() // 1_000_000 + number})
    dropped = [bench.store.sweep(max_letters=3, limit=2).letters_dropped for _ in range(3)]
    assert dropped == [2, 2, 0]
    assert [letter.id for letter in bench.store.dead_letters()] == ["l6", "l5", "l4"]
    assert not bench.redis.exists(keys.dead("l0"))
    assert bench.store.counts().totals["dead_letters_dropped"] == 4


def test_dead_letters_are_listed_newest_first_by_page(bench: Any) -> None:
    ids = [add(bench) for _ in range(5)]
    for score, letter_id in enumerate(ids):
        bench.redis.zadd(keys.DEAD, {letter_id: 10**12 + score})
    assert [letter.id for letter in bench.store.dead_letters(limit=2)] == [ids[4], ids[3]]
    assert [letter.id for letter in bench.store.dead_letters(offset=3)] == [ids[1], ids[0]]


def test_a_dropped_letter_is_gone(bench: Any) -> None:
    letter_id = add(bench)
    assert bench.store.dead_letter_drop(letter_id) is True
    assert bench.store.dead_letter_drop(letter_id) is False
    assert bench.store.dead_letter(letter_id) is None
    assert bench.store.dead_letters() == []


def test_a_dead_job_runs_again_under_its_own_id(bench: Any) -> None:
    dead_job(bench, '{"prompt":"hi"}')
    assert retry_dead_letter(bench.store, "j", ProducerSettings()) == "j"
    assert bench.state("j") == "queued"
    assert bench.store.dead_letters() == []
    assert retry_dead_letter(bench.store, "j", ProducerSettings()) is None


def test_a_dead_job_without_its_record_is_submitted_again_once(bench: Any) -> None:
    dead_job(bench, '{"prompt":"hi","seed":7,"idempotency_key":"k","deadline":"2020-01-01T00:00Z"}')
    letter = bench.store.dead_letter("j")
    bench.redis.delete(keys.job("j"))  # as if its time to live had run out
    new_id = retry_dead_letter(bench.store, "j", ProducerSettings())
    assert new_id not in (None, "j")
    record = bench.store.load(new_id)
    assert record.state == "queued"
    assert b'"seed":7' in record.document
    assert record.deadline_at_ms is None
    assert retry_dead_letter(bench.store, "j", ProducerSettings()) is None
    # As if the process had died before it dropped the letter.
    again = {"kind": "job", "reason": "r", "source": "w", "at_ms": letter.at_ms, "id": "j"}
    bench.redis.hset(keys.dead("j"), mapping=again | {"payload": letter.payload})
    assert retry_dead_letter(bench.store, "j", ProducerSettings()) == new_id


def test_a_retry_that_is_refused_keeps_the_letter(bench: Any) -> None:
    dead_job(bench, '{"prompt":"hi"}')
    bench.submit("other")
    with pytest.raises(QueueFull):
        retry_dead_letter(bench.store, "j", ProducerSettings(max_queue_depth=1))
    assert bench.store.dead_letter("j") is not None


def test_a_dead_message_goes_back_to_its_queue(bench: Any) -> None:
    letter_id = add(bench, b"payload")
    assert retry_dead_letter(bench.store, letter_id, ProducerSettings()) == QUEUE
    assert bench.redis.lrange(QUEUE, 0, -1) == [b"payload"]
    assert bench.store.counts().dead_letters == 0


def test_a_dead_delivery_goes_back_to_the_outbox(bench: Any) -> None:
    bench.submit("j", webhook="https://example.com/")
    bench.store.cancel("j")
    [entry] = bench.store.outbox_claim(owner="d", limit=1, lease_ms=1000)
    bench.store.outbox_settle(entry.event_id, fence=entry.fence, outcome=DeliveryOutcome.EXHAUSTED)
    assert retry_dead_letter(bench.store, entry.event_id, ProducerSettings()) == entry.event_id
    assert bench.store.counts().outbox == 1


def test_an_unknown_letter_cannot_be_tried_again(bench: Any) -> None:
    assert retry_dead_letter(bench.store, "unknown", ProducerSettings()) is None


def test_a_worker_is_listed_while_its_heart_beats(bench: Any) -> None:
    bench.store.announce_worker(WORKER)
    bench.store.announce_worker(replace(WORKER, name="w0@host", state="draining"))
    assert [worker.name for worker in bench.store.list_workers()] == ["w0@host", "w1@host"]
    assert bench.store.list_workers()[1] == WORKER
    assert 0 < bench.redis.ttl(keys.worker("w1@host")) <= keys.WORKER_TTL_S
    bench.redis.delete(keys.worker("w1@host"))  # its time to live has run out
    bench.store.forget_worker("w0@host")
    assert bench.store.list_workers() == []
    assert bench.redis.scard(keys.WORKERS) == 0


def test_a_heartbeat_of_a_later_version_is_still_read(bench: Any) -> None:
    bench.store.announce_worker(WORKER)
    text = bench.redis.get(keys.worker("w1@host")).replace(b'{"name"', b'{"mood":"fine","name"')
    bench.redis.set(keys.worker("w1@host"), text, ex=10)
    assert bench.store.list_workers() == [WORKER]


def test_counts_show_where_everything_is(bench: Any) -> None:
    bench.submit("waiting", webhook="https://example.com/")
    bench.started("running")
    bench.submit("gone", webhook="https://example.com/")
    bench.store.cancel("gone")
    add(bench)
    counts = bench.store.counts()
    assert (counts.queued, counts.in_progress) == (1, 1)
    assert (counts.outbox, counts.dead_letters) == (1, 1)
    assert counts.totals == {"submitted": 3, "cancelled": 1}
