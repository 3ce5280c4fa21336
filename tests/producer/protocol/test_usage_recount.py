"""Usage is recounted in pages while jobs come and go and records are deleted by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)

from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls import jobs as job_calls
from batchmill.producer.protocol.calls.new_job import NewJob, QueueLimits
from batchmill.producer.protocol.replies import Claim, HeldJob, JobState, ReleaseCause
from batchmill.producer.store.job_store import JobStore

from ...support.sequences import sequences
from .protocol_invariants import QUEUE, WINDOW_JOBS

LEASE_MS = 3_600_000
PROGRESS = b"recount"


def count_by_hand(
    redis: Any, is_counted: Callable[[float], bool] = lambda at: True
) -> dict[bytes, int]:
    """Return the usage counters that the records of the unfinished jobs add up to."""
    sums: dict[bytes, int] = {}
    for job_id in [*redis.zrange(keys.queued(QUEUE), 0, -1), *redis.zrange(keys.LEASES, 0, -1)]:
        record = redis.hgetall(keys.job(job_id.decode()))
        if not record:
            continue
        at = redis.zscore(keys.state_index(record[b"state"].decode()), job_id)
        if not is_counted(at):
            continue
        amounts = {b"unfinished": 1, b"reserved": int(record[b"reserved_bytes"])}
        if record[b"state"] == b"queued":
            amounts |= {b"jobs": 1, b"bytes": len(record[b"doc"]), b"tokens": int(record[b"cost"])}
            if redis.zscore(keys.SCHEDULED, job_id) is None:
                waiting = b"queue_tokens:" + QUEUE.encode()
                sums[waiting] = sums.get(waiting, 0) + int(record[b"cost"])
        charged = b"under_way:" + record[b"tenant"] + b":" + QUEUE.encode()
        sums[charged] = sums.get(charged, 0) + int(record.get(b"charge", 0))
        for name, amount in amounts.items():
            for field in (name, name + b":" + record[b"tenant"]):
                sums[field] = sums.get(field, 0) + amount
    return {field: value for field, value in sums.items() if value}


def counted(redis: Any, key: str) -> dict[bytes, int]:
    return {name: int(value) for name, value in redis.hgetall(key).items() if name != PROGRESS}


def spread_submissions(redis: Any) -> None:
    """Give every job another millisecond of submission."""
    index = keys.state_index("queued")
    for at, job_id in enumerate(redis.zrange(index, 0, -1)):
        redis.zadd(index, {job_id: 1000 + at})


def test_one_page_per_call_and_the_old_count_until_the_end(bench: Any) -> None:
    for number in range(25):
        bench.submit(f"j{number:02}", tenant="ab"[number % 2], cost=number)
    spread_submissions(bench.redis)
    right = counted(bench.redis, keys.USAGE)
    bench.redis.hset(keys.USAGE, "jobs", 26)
    seen = []
    for _ in range(3):
        assert counted(bench.redis, keys.USAGE)[b"jobs"] == 26
        seen.append(bench.store.sweep(limit=10).recounted)
    assert seen == [10, 10, 5]
    assert bench.redis.hgetall(keys.USAGE).keys() == right.keys()
    assert counted(bench.redis, keys.USAGE) == right
    assert bench.store.sweep(limit=10).recounted == 0


def test_jobs_of_one_millisecond_are_counted_in_one_page(bench: Any) -> None:
    for number in range(9):
        bench.submit(f"j{number}", cost=1)
    index = keys.state_index("queued")
    bench.redis.zadd(index, {f"j{number}": 1000 + number // 4 for number in range(9)})
    bench.redis.hset(keys.USAGE, "jobs", 10)
    assert [bench.store.sweep(limit=3).recounted for _ in range(3)] == [4, 4, 1]


def test_a_recount_that_lost_one_of_its_hashes_starts_again(bench: Any) -> None:
    for number in range(6):
        bench.submit(f"j{number}", cost=7)
    spread_submissions(bench.redis)
    for lost in (keys.RECOUNT, keys.USAGE):
        bench.redis.hset(keys.USAGE, "jobs", 7)
        bench.store.sweep(limit=2)
        bench.redis.delete(lost)
        if lost == keys.USAGE:  # otherwise nothing shows that it is wrong
            bench.redis.hset(keys.USAGE, "jobs", 7)
        while bench.store.sweep(limit=2).recounted:
            pass
        assert counted(bench.redis, keys.USAGE) == count_by_hand(bench.redis)
        assert not bench.redis.exists(keys.RECOUNT)


def test_a_malformed_record_makes_another_recount_follow(bench: Any) -> None:
    for number in range(6):
        bench.submit(f"j{number}", cost=7)
    spread_submissions(bench.redis)
    bench.redis.hset(keys.USAGE, "jobs", 7)
    bench.store.sweep(limit=4)
    # It was counted with its old cost, and ends with the new one.
    bench.redis.hset(keys.job("j0"), mapping={"cost": 1_000_000, "fence": "rubbish"})
    bench.store.claim("j0", owner="w", lease_ms=LEASE_MS, identity="i")
    while bench.store.sweep(limit=4).recounted:
        pass
    assert counted(bench.redis, keys.USAGE) == count_by_hand(bench.redis)
    assert counted(bench.redis, keys.USAGE)[b"tokens"] == 35


picks = st.integers(0, 9)
tenants = st.sampled_from(("a", "b", "default"))


class RecountMachine(RuleBasedStateMachine):
    """Random calls, most of them during a recount."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.store = JobStore.from_url(url)
        self.redis: Any = self.store.client
        self.redis.flushall()
        self.redis.set(keys.WINDOW, WINDOW_JOBS)
        self.fences: dict[str, str] = {}
        #: The recount has passed a job that was deleted since.
        self.is_outdated = False
        for _ in range(6):
            self.submit("a", False, 1)

    def pick(self, number: int) -> str:
        return list(self.fences)[number % len(self.fences)]

    def progress(self) -> tuple[float, float] | None:
        text = self.redis.hget(keys.USAGE, PROGRESS)
        if text is None:
            return None
        cursor, last, *_ = text.split()
        return float(cursor), float(last)

    @rule(tenant=tenants, is_delayed=st.booleans(), cost=st.integers(0, 9))
    def submit(self, tenant: str, is_delayed: bool, cost: int) -> None:
        job_id = f"j{len(self.fences)}"
        self.fences[job_id] = ""
        delay_ms = LEASE_MS if is_delayed else None
        job = NewJob(job_id, "demo", QUEUE, "{}" + " " * cost, 60_000)
        job = replace(job, cost=cost, reserved_bytes=10 * cost)
        self.store.submit(replace(job, tenant=tenant, delay_ms=delay_ms))

    @rule(number=picks)
    def claim(self, number: int) -> None:
        job_id = self.pick(number)
        reply = self.store.claim(job_id, owner="w", lease_ms=LEASE_MS, identity="i")
        if isinstance(reply, Claim):
            self.fences[job_id] = reply.fence

    @rule(number=picks)
    def release(self, number: int) -> None:
        job_id = self.pick(number)
        self.store.release([HeldJob(job_id, self.fences[job_id])], cause=ReleaseCause.DRAIN)

    @rule(number=picks)
    def fail(self, number: int) -> None:
        job_id = self.pick(number)
        self.store.complete(job_id, fence=self.fences[job_id], state=JobState.FAILED, result="{}")

    @rule(number=picks)
    def cancel(self, number: int) -> None:
        self.store.cancel(self.pick(number))

    @rule(number=picks)
    def retry(self, number: int) -> None:
        self.store.run(job_calls.retry(self.pick(number), QueueLimits()))

    @rule(number=picks)
    def remove_by_hand(self, number: int) -> None:
        job_id = self.pick(number)
        self.redis.delete(keys.job(job_id))
        self.redis.zadd(keys.SCHEDULED, {job_id: 1}, xx=True)  # its delay is over
        self.is_outdated = True

    @rule()
    def miscount(self) -> None:
        """Delete a record by hand, so that the next sweep finds too high a count."""
        self.redis.hset(keys.USAGE, "jobs", 1000)

    @rule(limit=st.integers(1, 3), times=st.integers(1, 3))
    def sweep(self, limit: int, times: int) -> None:
        for _ in range(times):
            before = self.progress()
            self.store.sweep(limit=limit, reannounce_grace_ms=-1, repair_interval_ms=0)
            after = self.progress()
            if after is None or before is None or after[1] != before[1]:
                self.is_outdated = False

    @invariant()
    def the_new_count_is_of_what_it_has_passed(self) -> None:
        progress = self.progress()
        if progress is None or self.is_outdated:
            return
        cursor, last = progress
        expected = count_by_hand(self.redis, lambda at: at <= cursor or at > last)
        assert counted(self.redis, keys.RECOUNT) == expected

    def end_delays(self) -> None:
        """Let all delays be over; the repair would put a job back that its record delays."""
        for job_id in self.redis.zrange(keys.SCHEDULED, 0, -1):
            if self.redis.exists(keys.job(job_id.decode())):
                self.redis.hset(keys.job(job_id.decode()), "not_before_ms", 1)
        self.redis.zadd(keys.SCHEDULED, dict.fromkeys(self.fences, 1), xx=True)

    def teardown(self) -> None:
        try:
            self.redis.delete(keys.announced(QUEUE))
            self.end_delays()
            self.redis.delete(keys.REPAIR)
            for _ in range(100):
                self.redis.hdel(keys.REPAIR, "page_at_ms")  # or a page would follow after a second
                self.store.sweep(limit=2, reannounce_grace_ms=-1, repair_interval_ms=LEASE_MS)
                self.redis.delete(keys.announced(QUEUE))  # the sweep then visits each job
            assert counted(self.redis, keys.USAGE) == count_by_hand(self.redis)
            assert self.progress() is None
            assert not self.redis.exists(keys.RECOUNT)
        finally:
            self.store.close()


def test_the_count_is_right_in_the_end_whatever_comes_between(redis_url: str) -> None:
    machine: Any = partial(RecountMachine, redis_url)
    run_state_machine_as_test(machine, settings=sequences(20))
