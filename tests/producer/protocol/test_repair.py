"""Jobs and counters become right again after keys were deleted by hand or evicted."""

from __future__ import annotations

import json
from typing import Any

import pytest

from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls import celery_tasks
from batchmill.producer.protocol.calls import inbox as inbox_calls
from batchmill.producer.protocol.pauses import PauseKind
from batchmill.producer.protocol.replies import Claim
from batchmill.producer.store.pauses import Pauses
from batchmill.producer.store.tenants import set_window

QUEUE = keys.queue_name("demo", "normal")
WINDOW = keys.DEFAULT_WINDOW_JOBS
HOUR_MS = 3_600_000


def repair(bench: Any, times: int = 3) -> None:
    """Sweep as often as a few minutes of a worker's sweeps would: each with a page of repair."""
    for _ in range(times):
        bench.redis.delete(keys.REPAIR)
        bench.store.sweep(reannounce_grace_ms=-1, repair_interval_ms=1)


def submit_some(bench: Any) -> list[str]:
    """Submit jobs that wait in each of the places: announced, in a backlog, delayed, running."""
    for number in range(WINDOW + 4):
        bench.submit(f"j{number}", tenant="ab"[number % 2], tags=("t",), ttl_ms=HOUR_MS)
    bench.submit("delayed", tenant="a", delay_ms=HOUR_MS)
    bench.started("running", tenant="c")
    return [f"j{number}" for number in range(WINDOW + 4)]


def run_all(bench: Any) -> list[str]:
    """Run the waiting jobs to their ends, as a worker that takes one at a time.

    A job may be announced twice: its message was still in the list.
    """
    done = []
    while (message := bench.take_announcement()) is not None:
        job_id = json.loads(message)["headers"]["id"]
        claim = bench.store.claim(job_id, owner="w", lease_ms=HOUR_MS, identity="i")
        if isinstance(claim, Claim):
            bench.end(job_id, 1)
            done.append(job_id)
    return done


@pytest.mark.parametrize(
    "lost",
    [
        (keys.queued(QUEUE),),
        (keys.turns(QUEUE),),
        (keys.backlog(QUEUE, "a"), keys.backlog(QUEUE, "b")),
        (keys.queued(QUEUE), keys.turns(QUEUE), keys.used(QUEUE), QUEUE, keys.QUEUES),
        (keys.SCHEDULED, keys.DEADLINES),
        (keys.state_index("queued"),),
        (keys.state_index("queued"), keys.queued(QUEUE), keys.turns(QUEUE), QUEUE),
        (keys.tag_index("t"), keys.tenant_index("a"), keys.tenant_index("b")),
        (keys.USAGE,),
        (keys.LEASES,),
        (keys.LEASES, keys.state_index("in_progress")),
        (keys.QUEUES, keys.LAST_SWEEP),
    ],
    ids=lambda lost: " ".join(name.removeprefix(keys.PREFIX) for name in lost),
)
def test_no_job_is_lost_if_these_keys_are(bench: Any, lost: tuple[str, ...]) -> None:
    waiting = submit_some(bench)
    bench.redis.delete(*lost)

    repair(bench)

    assert bench.redis.zscore(keys.SCHEDULED, "delayed") is not None
    assert bench.redis.zscore(keys.LEASES, "running") is not None
    assert bench.redis.zcard(keys.DEADLINES) == len(waiting)
    assert sorted(run_all(bench)) == sorted(waiting)
    assert int(bench.redis.hget(keys.USAGE, "unfinished")) == 2
    # The fixture compares every index and counter with the records.


def test_records_deleted_by_hand_leave_nothing_behind(bench: Any) -> None:
    submit_some(bench)
    for name in bench.redis.scan_iter(match=keys.job("*")):
        if name.decode() != keys.job("j0"):
            bench.redis.delete(name)

    repair(bench, times=4)
    bench.lose_lease("running")
    repair(bench)

    assert bench.redis.zrange(keys.queued(QUEUE), 0, -1) == [b"j0"]
    counted = {name.decode(): int(n) for name, n in bench.redis.hgetall(keys.USAGE).items()}
    assert (counted["jobs"], counted["unfinished"]) == (1, 1)
    assert [name for name in counted if name.startswith("under_way")] == [f"under_way:a:{QUEUE}"]
    left = bench.redis.zcard(keys.state_index("in_progress")) + bench.redis.zcard(keys.LEASES)
    assert left == 0
    bench.redis.zrem(keys.SCHEDULED, "delayed")  # removed when it is due
    for number in range(1, WINDOW + 4):
        bench.redis.zrem(keys.DEADLINES, f"j{number}")


@pytest.mark.parametrize("value", [-134, 10**9, "rubbish"])
def test_a_wrong_count_becomes_right(bench: Any, value: int | str) -> None:
    bench.submit("j", tenant="acme")
    right = bench.redis.hgetall(keys.USAGE)
    fields = ("jobs", "jobs:acme", "unfinished", "tokens:acme")
    for field in (*fields, f"under_way:acme:{QUEUE}", f"queue_tokens:{QUEUE}"):
        bench.redis.hset(keys.USAGE, field, value)
        repair(bench)
        assert bench.redis.hgetall(keys.USAGE) == right


def test_index_entries_of_an_ended_job_are_removed_though_their_list_was_lost(bench: Any) -> None:
    bench.submit("j", result_ttl_ms=30, tags=("t",), tenant="acme")
    bench.store.cancel("j")
    bench.redis.delete(keys.EXPIRING)
    while bench.redis.exists(keys.job("j")):
        pass
    repair(bench)
    assert bench.redis.keys(keys.JOB_INDEXES + "*") == []


def test_a_page_of_repair_follows_a_second_after_the_last(bench: Any) -> None:
    bench.submit("j")
    bench.store.sweep(repair_interval_ms=1)
    bench.redis.delete(keys.tag_index("t"), keys.backlog(QUEUE, "default"))
    bench.redis.hset(keys.USAGE, "tokens", 999)
    bench.store.sweep(repair_interval_ms=1)  # another worker's, in the same second
    assert bench.redis.hget(keys.USAGE, "tokens") == b"999"
    bench.redis.hset(keys.REPAIR, "page_at_ms", 1)
    bench.store.sweep(repair_interval_ms=1)
    assert bench.redis.hget(keys.USAGE, "tokens") == b"1"


def test_what_was_taken_is_handed_out_again_if_its_lease_is_deleted(bench: Any) -> None:
    bench.redis.lpush(QUEUE, "task")
    bench.redis.lpush(keys.INBOX, "document")
    (task,) = bench.store.run(celery_tasks.take([QUEUE], lease_ms=HOUR_MS))
    (document,) = bench.store.run(inbox_calls.take(HOUR_MS))
    repair(bench)
    assert bench.redis.zscore(keys.TASKS_TAKEN, task.taken_id) == task.held_until_ms
    bench.redis.delete(keys.TASKS_TAKEN, keys.INBOX_TAKEN)

    repair(bench)

    again = bench.store.run(celery_tasks.take([QUEUE], lease_ms=HOUR_MS))
    assert [each.taken_id for each in again] == [task.taken_id]
    assert bench.store.run(inbox_calls.take(HOUR_MS)) == [document]
    bench.store.run(celery_tasks.drop(task.taken_id))
    bench.store.run(inbox_calls.settle(document.id))


@pytest.mark.parametrize("forged", [keys.tag_index("x"), keys.tenant_index("a"), "backlog"])
def test_a_key_of_another_type_does_not_stop_the_repair(bench: Any, forged: str) -> None:
    forged = forged.replace("backlog", keys.backlog(QUEUE, "a"))
    set_window(bench.store, 1)
    for job_id, tenant in (("first", "b"), ("bad", "a"), ("good", "b")):
        bench.submit(job_id, tenant=tenant, tags=("x",) if job_id == "bad" else ())
    index = bench.redis.dump(forged)
    bench.redis.set(forged, "no index")
    bench.redis.delete(keys.tenant_index("b"))
    bench.redis.hset(keys.USAGE, "jobs", 999)

    repair(bench)

    assert bench.redis.zrange(keys.tenant_index("b"), 0, -1) == [b"first", b"good"]
    assert bench.redis.hget(keys.USAGE, "jobs") == b"3"
    assert not bench.redis.exists(keys.RECOUNT)
    bench.redis.restore(forged, 0, index, replace=True)


@pytest.mark.parametrize("is_lost", [False, True], ids=["kept", "lost"])
def test_the_repair_keeps_the_order_of_a_paused_backlog(bench: Any, is_lost: bool) -> None:
    Pauses(bench.store).pause(PauseKind.TENANT, "a")
    backlog = keys.backlog(QUEUE, "a")
    bench.submit("behind", tenant="a", message_priority=1)
    bench.submit("first", tenant="a")
    bench.submit("delayed", tenant="a", delay_ms=1)
    while not bench.store.announce_due(limit=9):
        pass
    bench.submit("last", tenant="a")
    order = bench.redis.zrange(backlog, 0, -1, withscores=True)
    assert [job_id for job_id, _ in order] == [b"first", b"delayed", b"last", b"behind"]
    if is_lost:
        bench.redis.delete(backlog)

    repair(bench)

    assert bench.redis.zrange(backlog, 0, -1, withscores=True) == order
    Pauses(bench.store).resume(PauseKind.TENANT, "a")


def test_a_backlog_of_another_type_stops_no_announcement(bench: Any) -> None:
    set_window(bench.store, 1)
    for job_id, tenant in (("first", "b"), ("bad", "a"), ("good", "b")):
        bench.submit(job_id, tenant=tenant)
    bench.redis.delete(keys.backlog(QUEUE, "a"))
    bench.redis.set(keys.backlog(QUEUE, "a"), "no backlog")

    done = run_all(bench)
    repair(bench)

    assert done + run_all(bench) == ["first", "good", "bad"]
