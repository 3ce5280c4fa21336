"""The sweep restores lost leases and announcements, and floods nothing."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from batchmill.producer.protocol import keys
from batchmill.producer.protocol.replies import (
    HeldJob,
    JobState,
    ReleaseCause,
    TokenWrite,
)
from batchmill.producer.protocol.sweep_counts import SweepCounts

QUEUE = keys.queue_name("demo", "normal")
NOTHING = SweepCounts(requeued=0, dead=0, cancelled=0, expired=0, reannounced=0)


def ids_in_queue(bench: Any) -> list[str]:
    """Return the announced jobs, in the order in which they would be taken."""
    messages = reversed(bench.redis.lrange(keys.announced(QUEUE), 0, -1))
    return [message.split(b'"correlation_id":"')[1].split(b'"')[0].decode() for message in messages]


def test_a_sweep_of_a_healthy_store_does_nothing(bench: Any) -> None:
    bench.submit("a", ttl_ms=60_000)
    bench.started("b")
    bench.take_announcement()
    bench.take_announcement()
    assert bench.store.sweep() == NOTHING
    assert (bench.state("a"), bench.state("b")) == ("queued", "in_progress")


def test_a_lost_lease_goes_back_to_the_head_of_its_queue_without_suspicion(bench: Any) -> None:
    bench.started("lost")
    bench.store.checkpoint([TokenWrite("lost", bench.fence("lost"), 0, [1])], lease_ms=60_000)
    bench.take_announcement()
    bench.submit("other")
    bench.lose_lease("lost")
    assert bench.store.sweep().requeued == 1
    record = bench.store.load("lost")
    assert (record.state, record.suspect, record.owner) == (JobState.QUEUED, 0, None)
    assert ids_in_queue(bench) == ["lost", "other"]
    assert bench.claim("lost").token_ids == [1]


def test_a_lease_that_runs_out_is_found(bench: Any) -> None:
    claim = bench.started("j", lease_ms=0)
    assert claim.attempts == 1
    assert bench.store.sweep().requeued == 1


def lose(bench: Any, job_id: str, num_new_tokens: int = 0) -> SweepCounts:
    """Claim a job, store some tokens, and lose its lease."""
    claim = bench.claim(job_id)
    if num_new_tokens:
        position = len(claim.token_ids)
        write = TokenWrite(job_id, claim.fence, position, [1] * num_new_tokens)
        bench.store.checkpoint([write], lease_ms=60_000)
    bench.lose_lease(job_id)
    counts: SweepCounts = bench.store.sweep()
    return counts


def test_a_job_that_loses_every_worker_without_progress_is_given_up(bench: Any) -> None:
    bench.submit("j")
    counts = [lose(bench, "j") for _ in range(8)]
    # Two losses say nothing; three make it run alone; and the third alone is final.
    assert [count.requeued for count in counts] == [1, 1, 1, 1, 1, 1, 1, 0]
    assert counts[-1].dead == 1
    assert bench.state("j") == "failed"
    assert bench.store.counts().dead_letters == 1
    error = bench.store.load("j").error.decode()
    assert "lost its worker 8 times without progress" in error
    assert "engine died" not in error


@pytest.mark.parametrize("num_new_tokens", [1, 64])
def test_a_job_that_makes_progress_is_never_given_up_for_lost_workers(
    bench: Any, num_new_tokens: int
) -> None:
    bench.submit("j")
    for _ in range(20):
        assert lose(bench, "j", num_new_tokens=num_new_tokens).requeued == 1
    record = bench.store.load("j")
    assert (record.state, record.suspect, record.crashes) == (JobState.QUEUED, 0, 0)
    assert not bench.claim("j").alone


def test_lost_workers_are_not_counted_as_engine_deaths(bench: Any) -> None:
    bench.submit("j")
    for _ in range(7):
        lose(bench, "j")
    for crashes in (1, 2):
        claim = bench.claim("j")
        assert claim.alone
        bench.store.release([HeldJob("j", claim.fence)], cause=ReleaseCause.ENGINE_DEATH)
        assert (bench.state("j"), bench.store.load("j").crashes) == ("queued", crashes)
    claim = bench.claim("j")
    bench.store.release([HeldJob("j", claim.fence)], cause=ReleaseCause.ENGINE_STALL)
    assert "the engine died or stood still 3 times" in bench.store.load("j").error.decode()


def test_progress_clears_the_suspicion_of_engine_deaths(bench: Any) -> None:
    bench.submit("j")
    for number in range(2):
        claim = bench.claim("j")
        bench.store.release([HeldJob("j", claim.fence)], cause=ReleaseCause.ENGINE_DEATH)
        assert bench.store.load("j").suspect == number + 1
    claim = bench.claim("j")
    bench.store.checkpoint([TokenWrite("j", claim.fence, 0, [1] * 64)], lease_ms=60_000)
    bench.store.release([HeldJob("j", claim.fence)], cause=ReleaseCause.ENGINE_DEATH)
    assert bench.store.load("j").suspect == 1


def test_leases_that_lapsed_while_no_worker_could_sweep_are_extended_once(bench: Any) -> None:
    bench.started("j")
    worker = {"sweep_interval_ms": 100, "extension_ms": 50}
    assert bench.store.sweep(**worker).extended == 0
    bench.lose_lease("j")
    bench.redis.decrby(keys.LAST_SWEEP, 10_000)  # as if Redis had been away for ten seconds

    counts = bench.store.sweep(**worker)

    assert (counts.extended, counts.requeued) == (1, 0)
    assert bench.state("j") == "in_progress"
    bench.lose_lease("j")
    counts = bench.store.sweep(**worker)
    assert (counts.extended, counts.requeued) == (0, 1)


def test_a_record_in_its_last_millisecond_leaves_no_index_entry(bench: Any) -> None:
    # Redis still returns a record in the very millisecond in which it expires.
    for number in range(10):
        bench.started(f"j{number}", result_ttl_ms=30)
        bench.store.complete(
            f"j{number}", fence=bench.fence(f"j{number}"), state=JobState.COMPLETED, result="{}"
        )
    while any(bench.redis.exists(keys.job(f"j{number}")) for number in range(10)):
        bench.store.sweep()  # many sweeps per millisecond
    bench.store.sweep()
    assert bench.redis.keys(keys.JOB_INDEXES + "*") == []


def test_two_sweeps_at_once_put_a_job_back_once(bench: Any) -> None:
    for number in range(20):
        bench.started(f"j{number}")
        bench.lose_lease(f"j{number}")
    while bench.take_announcement():
        pass
    with ThreadPoolExecutor(4) as threads:
        counts = list(threads.map(lambda _: bench.store.sweep(), range(4)))
    assert sum(count.requeued for count in counts) == 20
    assert sorted(ids_in_queue(bench)) == sorted(f"j{number}" for number in range(20))
    losses = {bench.redis.hget(keys.job(f"j{number}"), "lost_leases") for number in range(20)}
    assert losses == {b"1"}


def test_late_jobs_expire_while_they_wait(bench: Any) -> None:
    bench.submit("late", ttl_ms=60_000, webhook="https://example.com/hook")
    bench.submit("early", ttl_ms=60_000)
    bench.pass_deadline("late")
    assert bench.store.sweep().expired == 1
    assert (bench.state("late"), bench.state("early")) == ("expired", "queued")
    assert bench.redis.zrange(keys.OUTBOX, 0, -1) == [b"evt_late_expired"]


def test_only_the_worker_watches_the_deadline_of_a_running_job(bench: Any) -> None:
    bench.started("j", ttl_ms=60_000)
    bench.redis.hset(keys.job("j"), "deadline_at_ms", 1)
    assert bench.store.sweep() == NOTHING
    bench.lose_lease("j")
    assert bench.store.sweep().expired == 1
    assert bench.state("j") == "expired"


def test_a_lost_announcement_is_made_again(bench: Any) -> None:
    bench.submit("lost")
    bench.take_announcement()  # and the worker died before it could claim
    bench.age_announcement("lost")
    assert bench.store.sweep().reannounced == 1
    assert ids_in_queue(bench) == ["lost"]
    assert bench.store.sweep(reannounce_grace_ms=0) == NOTHING


def test_a_fresh_announcement_is_given_time(bench: Any) -> None:
    bench.submit("j")
    bench.take_announcement()
    assert bench.store.sweep(reannounce_grace_ms=60_000).reannounced == 0
    assert bench.store.sweep(reannounce_grace_ms=0).reannounced == 1


def test_all_announcements_lost_come_back_in_their_old_order(bench: Any) -> None:
    names = [f"j{number}" for number in range(5)]
    for score, name in enumerate(names):
        bench.submit(name)
        bench.redis.zadd(keys.queued(QUEUE), {name: score})
    bench.redis.delete(keys.announced(QUEUE))
    assert bench.store.sweep().reannounced == 5
    assert ids_in_queue(bench) == names


def test_an_outage_of_all_workers_floods_nothing(bench: Any) -> None:
    for number in range(10):
        bench.submit(f"j{number}")
    for _ in range(50):
        bench.age_announcements()
        assert bench.store.sweep(reannounce_grace_ms=0).reannounced == 0
    assert bench.redis.llen(keys.announced(QUEUE)) == keys.DEFAULT_WINDOW_JOBS


def test_no_more_is_announced_than_is_missing(bench: Any) -> None:
    for number in range(8):
        bench.submit(f"j{number}")
    bench.age_announcements()
    for _ in range(3):
        bench.take_announcement()
    assert bench.store.sweep().reannounced == 3
    assert bench.redis.llen(keys.announced(QUEUE)) == 8
    assert bench.store.sweep(reannounce_grace_ms=0).reannounced == 0


def test_a_job_without_an_announcement_gets_one_while_others_have_two(bench: Any) -> None:
    for number in range(4):
        bench.submit(f"j{number}")
    bench.redis.lpop(
        keys.announced(QUEUE)
    )  # the message of the newest job is lost; nothing records which one it was
    claimed = set()
    for _ in range(20):
        bench.store.sweep(reannounce_grace_ms=0)
        message = bench.take_announcement()
        if message is None:
            break
        job_id = message.split(b'"correlation_id":"')[1].split(b'"')[0].decode()
        if bench.state(job_id) == "queued":
            bench.claim(job_id)
            claimed.add(job_id)
    assert claimed == {"j0", "j1", "j2", "j3"}


def test_each_queue_is_counted_separately(bench: Any) -> None:
    high = keys.queue_name("demo", "high")
    bench.submit("urgent", queue=high)
    bench.submit("normal")
    bench.redis.delete(keys.announced(high))
    assert bench.store.sweep(reannounce_grace_ms=0).reannounced == 1
    assert [
        (depth.queue, depth.queued, depth.announcements) for depth in bench.store.queue_depths()
    ] == [
        (high, 1, 1),
        (QUEUE, 1, 1),
    ]


def test_the_limit_bounds_one_call_and_the_next_continues(bench: Any) -> None:
    for number in range(7):
        bench.started(f"j{number}")
        bench.lose_lease(f"j{number}")
    assert [bench.store.sweep(limit=3).requeued for _ in range(4)] == [3, 3, 1, 0]


@pytest.mark.parametrize("index", [keys.LEASES, keys.DEADLINES, keys.queued(QUEUE)])
def test_a_record_deleted_by_hand_does_not_stop_the_sweep(bench: Any, index: str) -> None:
    bench.started("held")
    bench.lose_lease("held")
    bench.redis.zadd(keys.QUEUES, {QUEUE: 1})
    bench.redis.zadd(index, {"ghost": 0})
    while bench.take_announcement():
        pass
    bench.store.sweep(reannounce_grace_ms=0)
    bench.take_announcement()
    bench.store.sweep(reannounce_grace_ms=0)
    assert bench.state("held") == "queued"
    assert bench.redis.zscore(index, "ghost") is None
    assert not bench.redis.exists(keys.job("ghost"))


def test_old_dead_letters_leave_their_index(bench: Any) -> None:
    bench.redis.zadd(keys.DEAD, {"old": 1})
    bench.store.sweep()
    assert bench.store.counts().dead_letters == 0


@pytest.mark.parametrize("kind", ["announced", "backlog", "delayed"])
def test_usage_is_recounted_after_records_were_deleted_by_hand(bench: Any, kind: str) -> None:
    """A deleted job in the window, behind it or delayed no longer counts against the limits."""
    fields: dict[str, Any] = {"delay_ms": 3_600_000} if kind == "delayed" else {}
    bench.submit("kept", tenant="acme", cost=7)
    for number in range(10 if kind == "backlog" else 1):
        bench.submit(f"gone-{number}", tenant="acme", cost=1000, **fields)
        if kind == "delayed":
            bench.redis.zadd(keys.SCHEDULED, {f"gone-{number}": 1})
    for name in bench.redis.scan_iter(match=keys.job("gone-*")):
        bench.redis.delete(name)
        for index in (keys.state_index("queued"), keys.tenant_index("acme")):
            bench.redis.zrem(index, name.decode().removeprefix(keys.job("")))
    bench.redis.delete(keys.announced(QUEUE))
    bench.age_announcements()

    for _ in range(3):
        bench.store.sweep()

    assert {k.decode(): int(v) for k, v in bench.redis.hgetall(keys.USAGE).items()} == {
        "jobs": 1,
        "bytes": 15,
        "tokens": 7,
        "jobs:acme": 1,
        "bytes:acme": 15,
        "tokens:acme": 7,
        "unfinished": 1,
        "unfinished:acme": 1,
        f"under_way:acme:{QUEUE}": 7000,
        f"queue_tokens:{QUEUE}": 7,
    }


def test_a_sweep_does_not_recount_correct_counters(bench: Any) -> None:
    bench.submit("j", cost=7)
    bench.redis.hset(keys.USAGE, "tokens", 6)  # only a recount would correct it
    bench.store.sweep()
    assert bench.redis.hget(keys.USAGE, "tokens") == b"6"
    bench.redis.hset(keys.USAGE, "tokens", 7)
