"""A key of another Redis type under one of batchmill's names is gone after a sweep."""

from __future__ import annotations

import re
from typing import Any

import pytest

from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls import inbox as inbox_calls
from batchmill.producer.protocol.outbox import DeliveryOutcome
from batchmill.producer.protocol.pauses import PauseKind
from batchmill.producer.protocol.replies import HeldJob, JobState, WriteStatus
from batchmill.producer.protocol.scripts import LUA_FOLDER
from batchmill.producer.store import job_index
from batchmill.producer.store.job_index import JobQuery
from batchmill.producer.store.pauses import Pauses

QUEUE = keys.queue_name("demo", "normal")
KEYS_LUA = (LUA_FOLDER / "lib" / "keys.lua").read_text(encoding="utf-8")
#: Keys that exist once.
FIXED = [
    name
    for name in re.findall(r"^local ([A-Z_]+) = '.*'$", KEYS_LUA, re.MULTILINE)
    if name not in ("RECORDS_AND_INDEXES", "JOB_INDEXES")  # patterns
]
STATES = [state.value for state in JobState]
#: Keys of a queue, and those that a job with these labels shares with others.
SHARED = {
    "queued": keys.queued(QUEUE),
    "turns": keys.turns(QUEUE),
    "used": keys.used(QUEUE),
    "announced": keys.announced(QUEUE),
    "backlog": keys.backlog(QUEUE, "acme"),
    "tag": keys.tag_index("red"),
    "tenant": keys.tenant_index("acme"),
    "leftovers of a tag": keys.leftover_tag("red"),
    "leftovers of a tenant": keys.leftover_tenant("acme"),
    **{f"state {state}": keys.state_index(state) for state in STATES},
}
KEYS = {name: getattr(keys, name) for name in FIXED} | SHARED


def write_foreign(redis: Any, key: str) -> None:
    """Replace a key with one of a type that batchmill uses nowhere."""
    redis.delete(key)
    redis.xadd(key, {"not": "ours"})


def sweep(bench: Any) -> None:
    """Sweep as workers do, with a page of every repair."""
    if bench.redis.type(keys.REPAIR) == b"hash":
        bench.redis.hdel(keys.REPAIR, "page_at_ms", "walk_at_ms")
    bench.store.sweep(repair_interval_ms=1, sweep_interval_ms=2000, extension_ms=5000)
    bench.store.announce_due(limit=10)


def run_every_verb(bench: Any, job_id: str) -> None:
    """Submit a job with all labels, run it to its end, deliver its webhook and find it."""
    bench.submit(
        job_id,
        tenant="acme",
        tags=("red",),
        idempotency_key="order-1",
        webhook="https://example.com/hook",
        celery_result=True,
    )
    assert bench.state(job_id) == "queued"
    claim = bench.claim(job_id)
    assert bench.store.renew([HeldJob(job_id, claim.fence)], lease_ms=60_000) == [WriteStatus.OK]
    bench.store.complete(
        job_id,
        fence=claim.fence,
        state=JobState.FAILED,
        error='{"code":"x","message":"x","retryable":false}',
    )
    (event,) = bench.store.outbox_claim(owner="d", limit=10, lease_ms=60_000)
    bench.store.outbox_settle(event.event_id, fence=event.fence, outcome=DeliveryOutcome.DELIVERED)
    assert bench.store.take_celery_ends(limit=9, grace_ms=-1000, lease_ms=1000) == [job_id]
    page = bench.store.run(job_index.list_jobs(JobQuery.checked("red", "acme"), 10))
    assert [job.id for job in page.jobs] == [job_id]
    bench.redis.lpush(keys.INBOX, "{}")
    assert bench.store.inbox_wait(1)
    (document,) = bench.store.run(inbox_calls.take(60_000))
    bench.store.run(inbox_calls.settle(document.id))
    Pauses(bench.store).pause(PauseKind.TENANT, "acme", by="a test", reason="")
    assert Pauses(bench.store).resume(PauseKind.TENANT, "acme")
    bench.store.end_lost_sessions("w.0", connected_ms=10_000)
    counts = bench.store.run(job_index.forget_where(JobQuery.narrow("red", None, "forget")))[1]
    assert counts.forgotten == 1


@pytest.mark.parametrize("name", KEYS)
def test_every_verb_works_after_a_sweep_that_met_a_foreign_key(bench: Any, name: str) -> None:
    bench.submit("before", tenant="acme", tags=("red",), idempotency_key="older")
    write_foreign(bench.redis, KEYS[name])

    for _ in range(3):
        sweep(bench)

    assert bench.state("before") == "queued"
    bench.store.cancel("before")
    bench.store.run(job_index.forget_where(JobQuery.narrow("red", None, "forget")))
    run_every_verb(bench, "after")
    assert bench.redis.type(KEYS[name]) != b"stream"


def test_a_foreign_key_in_the_place_of_an_idempotency_entry_holds_no_job_up(bench: Any) -> None:
    """It is kept, and refuses later submissions with this key by name: its owner may need it."""
    bench.submit("j", tenant="acme", tags=("red",), idempotency_key="order-1")
    foreign = keys.idempotency("acme", "order-1")
    write_foreign(bench.redis, foreign)
    for _ in range(3):
        sweep(bench)
    claim = bench.claim("j")
    bench.store.complete("j", fence=claim.fence, state=JobState.COMPLETED, result="{}")
    assert bench.state("j") == "completed"
    counts = bench.store.run(job_index.forget_where(JobQuery.narrow("red", None, "forget")))[1]
    assert counts.forgotten == 1
    assert bench.redis.type(foreign) == b"stream"
    bench.redis.delete(foreign)


@pytest.mark.parametrize("name", ["LEASES", "state queued", "turns", "tag"])
def test_the_sweep_tells_which_foreign_keys_it_deleted(bench: Any, name: str) -> None:
    bench.submit("j", tags=("red",))
    write_foreign(bench.redis, KEYS[name])

    counts = bench.store.sweep(repair_interval_ms=1)

    assert counts.foreign_keys == (KEYS[name],)
    for _ in range(3):
        sweep(bench)
    assert bench.state("j") == "queued"


def test_the_types_of_all_keys_that_exist_once_are_known() -> None:
    text = (LUA_FOLDER / "lib" / "foreign_keys.lua").read_text(encoding="utf-8")
    listed = re.findall(r"\b[A-Z][A-Z_]+\b", text.split("KEYS_OF_TYPE = {")[1].split("\n}")[0])
    assert sorted(listed) == sorted(FIXED)
