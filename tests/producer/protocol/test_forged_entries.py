"""Readers of lists: an entry that batchmill did not write hides none of the others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from batchmill.producer.errors import JobRejected
from batchmill.producer.job.batch import BatchRequest
from batchmill.producer.protocol import keys, reads
from batchmill.producer.protocol.calls import inbox as inbox_calls
from batchmill.producer.protocol.records import DeadLetterKind
from batchmill.producer.protocol.replies import JobState
from batchmill.producer.settings import ProducerSettings
from batchmill.producer.store import batch_calls, job_index
from batchmill.producer.store.batches import batches, newest_batch_ids
from batchmill.producer.store.dead_letters import retry_dead_letter
from batchmill.producer.store.ended_jobs import ended_jobs
from batchmill.producer.store.endpoints import Endpoints
from batchmill.producer.store.job_index import JobQuery
from batchmill.producer.store.tenants import list_tenants, load_tenant, set_tenant
from batchmill.producer.watch.channel_messages import Watched

from ...support.worker_info import worker_info

NOT_UTF8 = b"\xff\xfe"
FORGED_EVENTS: list[tuple[str, bytes]] = [
    ("url", b"https://\xff\xfe/"),
    ("num_tokens", b"many"),
    ("type", NOT_UTF8),
    ("secret", NOT_UTF8),
    ("job_id", NOT_UTF8),
]


@pytest.fixture(autouse=True)
def _without_forged_keys_at_the_end(bench: Any) -> Iterator[None]:
    yield
    bench.redis.flushall()  # the bench checks that every key that is left was written by batchmill


@pytest.mark.parametrize(("field", "value"), FORGED_EVENTS)
def test_a_forged_field_of_an_event_makes_a_dead_letter_and_the_others_are_claimed(
    bench: Any, field: str, value: bytes
) -> None:
    for name in ("good", "forged"):
        bench.submit(name, webhook="https://example.com/hook")
        bench.store.cancel(name)
    bench.redis.hset(keys.event("evt_forged_cancelled"), field, value)

    claimed = bench.store.outbox_claim(owner="d", limit=10, lease_ms=60_000)

    assert [entry.event_id for entry in claimed] == ["evt_good_cancelled"]
    [letter] = bench.store.dead_letters()
    assert (letter.id, letter.reason) == ("evt_forged_cancelled", "unusable_event")
    assert bench.redis.zrange(keys.OUTBOX, 0, -1) == [b"evt_good_cancelled"]


def test_an_event_id_that_is_not_utf8_makes_a_dead_letter(bench: Any) -> None:
    event = {"type": "t", "job_id": "j", "url": "https://e", "created_at_ms": 1, "state": "pending"}
    bench.redis.hset(keys.event("").encode() + NOT_UTF8, mapping=event)
    bench.redis.zadd(keys.OUTBOX, {NOT_UTF8: 1})
    bench.store.outbox_repair(0)

    assert bench.store.outbox_claim(owner="d", limit=10, lease_ms=60_000) == []

    [letter] = bench.store.dead_letters()
    assert (letter.id, letter.reason) == (r"\xff\xfe", "unusable_event")
    assert bench.store.counts().outbox == 0


@pytest.mark.parametrize(
    "fields",
    [
        None,
        {"kind": "rubbish", "reason": "r", "payload": "p", "source": "s", "at_ms": "1"},
        {"kind": "job", "reason": "r", "payload": "p", "source": "s", "at_ms": "soon"},
        {"kind": NOT_UTF8, "reason": "r", "payload": "p", "source": "s", "at_ms": "1"},
        {"kind": "job"},
    ],
)
def test_a_forged_dead_letter_is_listed_beside_the_others(
    bench: Any, fields: dict[str, Any] | None
) -> None:
    add = bench.store.dead_letter_add
    good = add(kind=DeadLetterKind.MESSAGE, reason="malformed", payload=b"x", source="q")
    if fields is None:
        bench.redis.set(keys.dead("forged"), "no letter")
    else:
        bench.redis.hset(keys.dead("forged"), mapping=fields)
    bench.redis.zadd(keys.DEAD, {"forged": 1})

    letters = bench.store.dead_letters()

    assert [(letter.id, letter.reason) for letter in letters] == [
        (good, "malformed"),
        ("forged", "unusable_letter"),
    ]
    with pytest.raises(JobRejected, match="batchmill dead-letters drop forged"):
        retry_dead_letter(bench.store, "forged", ProducerSettings())
    assert bench.store.dead_letter_drop("forged")
    assert [letter.id for letter in bench.store.dead_letters()] == [good]


def test_forged_workers_do_not_hide_the_others(bench: Any) -> None:
    bench.store.announce_worker(worker_info("w1"))
    bench.redis.sadd(keys.WORKERS, NOT_UTF8, "a-list")
    bench.redis.rpush(keys.worker("a-list"), "no heartbeat")

    assert [worker.name for worker in bench.store.list_workers()] == ["w1"]


def test_forged_queues_and_totals_do_not_hide_the_others(bench: Any) -> None:
    bench.submit("j")
    bench.redis.zadd(keys.QUEUES, {NOT_UTF8: 1, "a-string": 1})
    bench.redis.set("a-string", "no list")
    bench.redis.hset(keys.TOTALS, mapping={"completed": "many", NOT_UTF8: "1"})

    counts = bench.store.counts()

    assert (counts.queued, counts.totals) == (1, {"submitted": 1})


def test_a_forged_record_does_not_hide_the_others_of_an_index_page(bench: Any) -> None:
    for name in ("good", "text", "number", "error"):
        bench.submit(name, tags=("t",))
    bench.redis.hset(keys.job("text"), "model", NOT_UTF8)
    bench.redis.hset(keys.job("number"), "attempts", "many")
    bench.redis.hset(keys.job("error"), "error", "no JSON")
    bench.redis.zadd(keys.tag_index("t"), {NOT_UTF8: 1})
    bench.redis.hset(keys.job("").encode() + NOT_UTF8, mapping={"state": "queued", "tags": "t"})

    page = bench.store.run(job_index.list_jobs(JobQuery(tag="t"), 100))

    assert "good" in [job.id for job in page.jobs]


def test_forged_records_do_not_hide_how_other_jobs_ended(bench: Any) -> None:
    for name in ("good", "forged"):
        bench.submit(name)
        bench.store.cancel(name)
    bench.redis.hset(keys.job("forged"), "finished_at_ms", "soon")
    bench.redis.hset(keys.job("unknown-state"), "state", "rubbish")
    bench.redis.set(keys.job("a-string"), "no record")
    ids = ["good", "forged", "unknown-state", "a-string"]

    ends = bench.store.read(ended_jobs(ids))
    states = bench.store.read(reads.job_states(ids))

    assert [end.state for end in ends] == [JobState.CANCELLED, None, None, None]
    assert states == [JobState.CANCELLED, JobState.CANCELLED, None, None]


def test_a_forged_batch_does_not_hide_the_others(bench: Any) -> None:
    bench.store.run(batch_calls.create(BatchRequest(), ProducerSettings(), "good"))
    bench.redis.hset(keys.batch("forged"), mapping={"id": "forged", "state": "rubbish"})
    bench.redis.set(keys.batch("a-string"), "no batch")
    bench.redis.zadd(keys.BATCHES, {"forged": 1, "a-string": 2, NOT_UTF8: 3})

    ids = bench.store.read(newest_batch_ids(10))
    found = bench.store.read(batches(ids))

    assert [batch.id for batch in found if batch is not None] == ["good"]


def test_forged_tenants_do_not_hide_the_others(bench: Any) -> None:
    set_tenant(bench.store, "acme", {"weight": 2})
    fields = {NOT_UTF8: "1", "evil:weight": "heavy", "evil:max_jobs": "inf"}
    bench.redis.hset(keys.TENANTS, mapping=fields)
    bench.redis.hset(keys.USAGE, mapping={"jobs:evil": NOT_UTF8})

    assert [tenant.name for tenant in list_tenants(bench.store)] == ["acme"]
    assert load_tenant(bench.store, "acme").limits.weight == 2
    assert load_tenant(bench.store, "evil").limits.max_jobs is None


def test_forged_endpoints_do_not_hide_the_others(bench: Any) -> None:
    names = [b"acme https://good/", NOT_UTF8, b"acme https://bad/"]
    disabled = zip(names, ["5 gone", "6 gone", "soon gone"], strict=True)
    bench.redis.hset(keys.ENDPOINTS_DISABLED, mapping=dict(disabled))
    bench.redis.zadd(keys.FAST_HOSTS, {NOT_UTF8: 1})
    bench.redis.set(keys.endpoint("acme https://good/"), "no state")

    found, num_left_out = Endpoints(bench.store).page()

    assert [(each.tenant, each.url, each.disabled_at_ms) for each in found] == [
        ("acme", "https://bad/", 0),
        ("acme", "https://good/", 5),
    ]
    assert num_left_out == 0


def test_a_document_under_a_forged_id_does_not_hold_up_the_others(bench: Any) -> None:
    bench.redis.hset(keys.INBOX_DOCUMENTS, NOT_UTF8, "a document")
    bench.redis.zadd(keys.INBOX_TAKEN, {NOT_UTF8: 1})
    bench.redis.lpush(keys.INBOX, "another")

    taken = bench.store.run(inbox_calls.take(1000))

    assert [document.content for document in taken] == [b"another"]
    [letter] = bench.store.dead_letters()
    assert (letter.reason, letter.payload) == ("unusable_id", b"a document")


@pytest.mark.parametrize("data", [b'{"state"', b'{"state":"rubbish"}', b'{"state":"\xff"}'])
def test_a_forged_message_does_not_end_a_wait(data: bytes) -> None:
    watched = Watched()
    watched.add(["j"])
    message = {"type": "message", "channel": keys.channel("j").encode(), "data": data}

    assert watched.note_message(message) is None
    assert not watched.has_ended
