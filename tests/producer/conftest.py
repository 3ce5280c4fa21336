"""Helpers for tests of the job protocol against a real server."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from redis import Redis

from batchmill.producer import keys
from batchmill.producer.answers import Claim, Submitted
from batchmill.producer.calls import NewJob
from batchmill.producer.store import JobStore

QUEUE = keys.queue_name("demo", "normal")


class Bench:
    """A store and the few moves that most tests begin with."""

    def __init__(self, store: JobStore) -> None:
        self.store = store
        self._numbers = itertools.count(1)

    @property
    def redis(self) -> Any:
        return self.store.client

    def submit(self, job_id: str | None = None, **changes: Any) -> Submitted:
        """Submit a job; its id is j1, j2 ... unless given."""
        return self.store.submit(self.new_job(job_id, **changes))

    def new_job(self, job_id: str | None = None, **changes: Any) -> NewJob:
        fields: dict[str, Any] = {
            "job_id": job_id or f"j{next(self._numbers)}",
            "model": "demo",
            "queue": QUEUE,
            "document": '{"prompt":"hi"}',
            "result_ttl_ms": 60_000,
        }
        return NewJob(**(fields | changes))

    def claim(self, job_id: str, *, lease_ms: int = 60_000, identity: str = "model-1") -> Claim:
        claim = self.store.claim(job_id, owner="worker-1", lease_ms=lease_ms, identity=identity)
        assert isinstance(claim, Claim), claim
        return claim

    def started(self, job_id: str = "j", *, lease_ms: int = 60_000, **changes: Any) -> Claim:
        """Submit a job and claim it."""
        self.submit(job_id, **changes)
        return self.claim(job_id, lease_ms=lease_ms)

    def lose_lease(self, job_id: str) -> None:
        """Move a lease into the past, as if its worker had been silent for long."""
        assert self.redis.zadd(keys.LEASES, {job_id: 1}, xx=True, ch=True) == 1

    def pass_deadline(self, job_id: str) -> None:
        """Move a waiting job's deadline into the past."""
        self.redis.hset(keys.job(job_id), "deadline_at_ms", 1)
        assert self.redis.zadd(keys.DEADLINES, {job_id: 1}, xx=True, ch=True) == 1

    def age_announcement(self, job_id: str) -> None:
        """Make a waiting job's last announcement an old one."""
        self.redis.zadd(keys.queued(QUEUE), {job_id: 1}, xx=True)
        assert self.redis.zscore(keys.queued(QUEUE), job_id) == 1

    def take_announcement(self) -> bytes | None:
        """Take the next message of the queue, as kombu does."""
        return self.redis.rpop(QUEUE)

    def state(self, job_id: str) -> str | None:
        state = self.store.state(job_id)
        return None if state is None else state.value


@pytest.fixture
def bench(redis_url: str) -> Iterator[Bench]:
    store = JobStore.from_url(redis_url)
    yield Bench(store)
    try:
        assert_every_key_ends(store.client)
    finally:
        store.close()


@pytest.fixture
def check_keys() -> Callable[[Redis], None]:
    return assert_every_key_ends


#: Keys that stay for good: indexes and registries, none of which grows with the jobs done.
REGISTRIES = {
    keys.ENDPOINTS_DISABLED,
    *(keys.LEASES, keys.DEADLINES, keys.QUEUES, keys.OUTBOX, keys.DEAD, keys.WORKERS, keys.TOTALS),
    *(keys.BATCHES, keys.BATCHES_DUE),
}


def assert_every_key_ends(redis: Any) -> None:
    """Prove that each key has a time to live or is reachable from an index, and no index lies."""
    names = {name.decode() for name in redis.scan_iter(match=keys.PREFIX + "*")}
    queues = [queue.decode() for queue in redis.smembers(keys.QUEUES)]
    queued = {i.decode() for queue in queues for i in redis.zrange(keys.queued(queue), 0, -1)}
    leased = {i.decode() for i in redis.zrange(keys.LEASES, 0, -1)}
    deadlines = {i.decode() for i in redis.zrange(keys.DEADLINES, 0, -1)}
    pending = {i.decode() for i in redis.zrange(keys.OUTBOX, 0, -1)}
    assert not queued & leased
    assert deadlines <= queued
    live = queued | leased
    allowed = REGISTRIES | {keys.queued(queue) for queue in queues}
    allowed |= {keys.job(i) for i in live} | {keys.tokens(i) for i in live}
    allowed |= {keys.event(i) for i in pending}
    for i in live:
        assert keys.job(i) in names, f"index entry {i} without a record"
        assert redis.ttl(keys.job(i)) == -1, f"job {i} has not ended and would be deleted"
        if key := redis.hget(keys.job(i), "idempotency_key"):
            allowed.add(keys.idempotency(key.decode()))
    for i in pending:
        assert keys.event(i) in names, f"outbox entry {i} without an event"
        assert redis.ttl(keys.event(i)) == -1
    for batch_id in (i.decode() for i in redis.zrange(keys.BATCHES, 0, -1)):
        state = redis.hget(keys.batch(batch_id), "state")
        if state in (b"validating", b"in_progress", b"cancelling"):
            allowed |= {keys.batch(batch_id), keys.batch_jobs(batch_id)}
        else:
            assert redis.zscore(keys.BATCHES_DUE, batch_id), f"{batch_id} stays in the index"
    for name in names - allowed:
        assert redis.ttl(name) > 0, f"{name} has neither a time to live nor an index entry"
