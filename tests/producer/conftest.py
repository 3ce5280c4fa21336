"""Helpers for tests of the job protocol against a real server."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
from redis import Redis

from batchmill.producer import AsyncClient, Client
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls.new_job import NewJob, QueueLimits
from batchmill.producer.protocol.pauses import PauseKind
from batchmill.producer.protocol.replies import Claim, JobState, SubmitReply
from batchmill.producer.protocol.used_tokens import UsedTokens
from batchmill.producer.store.job_store import JobStore
from batchmill.producer.store.pauses import Pauses

from ..support.fences import fence_of
from ..support.outbox import assert_outbox_adds_up
from .blocking_client import Blocking, LoopThread

QUEUE = keys.queue_name("demo", "normal")


class Bench:
    """A store, with the steps that most tests begin with."""

    def __init__(self, store: JobStore) -> None:
        self.store = store
        self._numbers = itertools.count(1)

    @property
    def redis(self) -> Any:
        return self.store.client

    def submit(self, job_id: str | None = None, **changes: Any) -> SubmitReply:
        """Submit a job; its id is j1, j2 ... unless given."""
        return self.store.submit(self.new_job(job_id, **changes))

    def new_job(self, job_id: str | None = None, **changes: Any) -> NewJob:
        depth = changes.pop("max_queue_depth", None)
        fields: dict[str, Any] = {
            "limits": QueueLimits(max_queue_depth=depth),
            "job_id": job_id or f"j{next(self._numbers)}",
            "model": "demo",
            "queue": QUEUE,
            "document": '{"prompt":"hi"}',
            "result_ttl_ms": 60_000,
        }
        return NewJob(**(fields | changes))

    def claim(
        self,
        job_id: str,
        *,
        lease_ms: int = 60_000,
        identity: str = "model-1",
        session: str = "",
    ) -> Claim:
        claim = self.store.claim(
            job_id, owner="worker-1", lease_ms=lease_ms, identity=identity, session=session
        )
        assert isinstance(claim, Claim), claim
        return claim

    def started(self, job_id: str = "j", *, lease_ms: int = 60_000, **changes: Any) -> Claim:
        """Submit a job and claim it."""
        self.submit(job_id, **changes)
        return self.claim(job_id, lease_ms=lease_ms)

    def fence(self, job_id: str) -> str:
        """Return the fence of a job's last claim."""
        return fence_of(self.store.load(job_id))

    def lose_lease(self, job_id: str) -> None:
        """Move the end of a lease into the past, as if its worker had been silent."""
        assert self.redis.zadd(keys.LEASES, {job_id: 1}, xx=True, ch=True) == 1

    def pass_deadline(self, job_id: str) -> None:
        """Move the deadline of a waiting job into the past."""
        self.redis.hset(keys.job(job_id), "deadline_at_ms", 1)
        assert self.redis.zadd(keys.DEADLINES, {job_id: 1}, xx=True, ch=True) == 1

    def age_announcement(self, job_id: str) -> None:
        """Make the last announcement of a waiting job old."""
        self.redis.zadd(keys.queued(QUEUE), {job_id: 1}, xx=True)
        assert self.redis.zscore(keys.queued(QUEUE), job_id) == 1

    def age_announcements(self) -> None:
        """Make the last announcement of every announced job old."""
        for job_id in self.redis.zrangebyscore(keys.queued(QUEUE), "-inf", "(+inf"):
            self.age_announcement(job_id.decode())

    def take_announcement(self) -> bytes | None:
        """Take the next message of the queue, as kombu does."""
        message: bytes | None = self.redis.rpop(keys.announced(QUEUE))
        return message

    def take_next(self) -> str | None:
        """Take the next message of the queue and claim its job, as a worker does."""
        message = self.take_announcement()
        if message is None:
            return None
        job_id: str = json.loads(message)["headers"]["id"]
        self.claim(job_id)
        return job_id

    def end(self, job_id: str, num_tokens: int) -> None:
        """Complete a claimed job that used a number of tokens."""
        self.store.complete(
            job_id,
            fence=self.fence(job_id),
            state=JobState.COMPLETED,
            result="{}",
            used=UsedTokens(completion=num_tokens),
        )

    def announced(self) -> list[str]:
        """Return the jobs in the queue's list, in the order in which they are taken."""
        messages = reversed(self.redis.lrange(keys.announced(QUEUE), 0, -1))
        return [json.loads(message)["headers"]["id"] for message in messages]

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


@pytest.fixture(params=["synchronous", "asyncio"])
def client(request: pytest.FixtureRequest, redis_url: str) -> Iterator[Client]:
    """A client of either kind; the asyncio one behind the synchronous interface."""
    if request.param == "synchronous":
        with Client(redis_url) as client:
            yield client
        return
    loop = LoopThread()
    async_client = AsyncClient(redis_url)
    yield cast(Client, Blocking(async_client, loop))
    loop.run(async_client.close())
    loop.close()


@pytest.fixture
def check_keys() -> Callable[[Redis], None]:
    return assert_every_key_ends


#: Keys without a TTL: indexes and registries, none of which grows with the jobs that ended.
REGISTRIES = {
    *(keys.SETTLED_EVENTS, keys.ENDPOINTS_DISABLED, keys.PAUSED, keys.CELERY_ENDS, keys.UNUSABLE),
    *(keys.INBOX, keys.INBOX_ARRIVED, keys.INBOX_TAKEN, keys.INBOX_DOCUMENTS, keys.INBOX_TAKERS),
    *(keys.LEASES, keys.DEADLINES, keys.QUEUES, keys.OUTBOX, keys.DEAD, keys.WORKERS, keys.TOTALS),
    *(keys.BATCHES, keys.BATCHES_DUE, keys.SESSIONS, keys.CLOCK, keys.LAST_SWEEP),
    *(keys.SCHEDULED, keys.USAGE, keys.TENANTS, keys.WINDOW, keys.REPAIR, keys.MEMORY),
    *(keys.SERVED, keys.LEFTOVERS, keys.API_KEYS, keys.OUTBOX_TAKERS),
    *(keys.PAYLOADS, keys.PAYLOADS_UNUSED, keys.MEDIA_DUE),
    *(keys.USED_TOKENS, keys.RECEIVER_SECRETS, keys.CELERY_END_TAKERS),
    *(keys.BATCH_INTAKES, keys.FILES_EXPIRING, keys.ADAPTERS, keys.STEERING_VECTORS),
}


def indexes_that_hold_just_the_records(redis: Any, names: set[str]) -> set[str]:
    """Assert that each record is in the index of its state, tags and tenant, and in no other.

    Entries of expired records stay until the next sweep.
    """
    indexes = {name for name in names if name.startswith(keys.JOB_INDEXES)}
    found: dict[str, set[str]] = {}
    for index in indexes - {keys.EXPIRING}:
        found[index] = {i.decode() for i in redis.zrange(index, 0, -1)}
    leaving = {entry.decode().split("\n")[0] for entry in redis.zrange(keys.EXPIRING, 0, -1)}
    expected: dict[str, set[str]] = {}
    records = {name.removeprefix(keys.job("")) for name in names if name.startswith(keys.job(""))}
    for i in records:
        state, tags, tenant = redis.hmget(keys.job(i), "state", "tags", "tenant")
        assert (i in leaving) == (state not in (b"queued", b"in_progress"))
        expected.setdefault(keys.state_index(state.decode()), set()).add(i)
        if tenant not in (None, keys.DEFAULT_TENANT.encode()):
            expected.setdefault(keys.tenant_index(tenant.decode()), set()).add(i)
        for tag in (tags or b"").decode().split(",") if tags else ():
            expected.setdefault(keys.tag_index(tag), set()).add(i)
    for index, ids in found.items():
        assert expected.get(index, set()) <= ids, index
        assert ids - expected.get(index, set()) <= leaving - records, f"{index} lies"
    assert set(expected) <= set(found)
    return indexes


def assert_every_key_ends(redis: Any) -> None:
    """Assert that each key has a time to live or an index entry, and that each index is right."""
    names = {name.decode() for name in redis.scan_iter(match=keys.PREFIX + "*")}
    queues = [queue.decode() for queue in redis.zrange(keys.QUEUES, 0, -1)]
    queued = {i.decode() for queue in queues for i in redis.zrange(keys.queued(queue), 0, -1)}
    leased = {i.decode() for i in redis.zrange(keys.LEASES, 0, -1)}
    deadlines = {i.decode() for i in redis.zrange(keys.DEADLINES, 0, -1)}
    pending = {i.decode() for i in redis.zrange(keys.OUTBOX, 0, -1)}
    assert not queued & leased
    assert deadlines <= queued
    live = queued | leased
    allowed = REGISTRIES | {key(queue) for queue in queues for key in (keys.queued, keys.announced)}
    allowed |= {key(i) for i in live for key in (keys.job, keys.tokens, keys.text, keys.seals)}
    allowed |= indexes_that_hold_just_the_records(redis, names)
    allowed |= {keys.event(i) for i in pending}
    allowed |= assert_outbox_adds_up(redis, pending)
    for queue in queues:
        allowed |= assert_waiting_jobs_add_up(redis, queue)
    assert_usage_adds_up(redis, queued, leased)
    for i in live:
        assert keys.job(i) in names, f"index entry {i} without a record"
        assert redis.ttl(keys.job(i)) == -1, f"job {i} has not ended and would be deleted"
    for i in pending:
        assert keys.event(i) in names, f"outbox entry {i} without an event"
        assert redis.ttl(keys.event(i)) == -1
    for batch_id in (i.decode() for i in redis.zrange(keys.BATCHES, 0, -1)):
        state = redis.hget(keys.batch(batch_id), "state")
        if state in (b"validating", b"in_progress", b"cancelling"):
            allowed |= {keys.batch(batch_id), keys.batch_jobs(batch_id)}
        else:
            assert redis.zscore(keys.BATCHES_DUE, batch_id), f"{batch_id} stays in the index"
    allowed |= {name for name in names if name.startswith(f"{keys.LEFTOVERS}:")}
    allowed |= media_of_unfinished_jobs(redis, live)
    allowed |= {name for name in names if name.startswith(keys.receivers(""))}
    for name in names - allowed:
        assert redis.pttl(name) != -1, f"{name} has neither a time to live nor an index entry"


def media_of_unfinished_jobs(redis: Any, live: set[str]) -> set[str]:
    """Return the keys of the media that unfinished jobs name; assert that they are kept."""
    found = set()
    for i in live:
        for name in (redis.hget(keys.job(i), "media") or b"").decode().split():
            if name != "-" and redis.exists(keys.media(name)):
                assert redis.zscore(keys.media_jobs(name), i) == 0
                found |= {keys.media(name), keys.media_jobs(name)}
    return found


def assert_waiting_jobs_add_up(redis: Any, queue: str) -> set[str]:
    """Assert that each waiting job is in one place and that the charges of tenants add up.

    Returns:
        The keys of the queue.
    """
    scores = dict(redis.zrange(keys.queued(queue), 0, -1, withscores=True))
    unannounced = {i for i, score in scores.items() if score == math.inf}
    backlogs = {
        key: set(redis.zrange(key, 0, -1))
        for key in redis.scan_iter(match=keys.backlog(queue, "*"))
    }
    waiting = [i for ids in backlogs.values() for i in ids]
    scheduled = set(redis.zrange(keys.SCHEDULED, 0, -1)) & set(scores)
    assert sorted([*waiting, *scheduled]) == sorted(unannounced)
    for key, ids in backlogs.items():
        assert {_tenant(redis, i) for i in ids} == {key.decode().rpartition(":")[2]}
    turns = {name.decode() for name in redis.zrange(keys.turns(queue), 0, -1)}
    paused = {x.name for x in Pauses(JobStore(redis)).all() if x.kind is PauseKind.TENANT}
    assert turns == {key.decode().rpartition(":")[2] for key in backlogs} - paused
    charges: dict[str, int] = {}
    for key in redis.scan_iter(match=keys.job("*")):
        charge = redis.hget(key, "charge")
        if charge is not None and redis.hget(key, "queue").decode() == queue:
            tenant = redis.hget(key, "tenant").decode()
            charges[tenant] = charges.get(tenant, 0) + int(charge)
    assert under_way(redis, queue) == {name: value for name, value in charges.items() if value}
    own = {keys.turns(queue), keys.used(queue)}
    return own | {key.decode() for key in backlogs}


def under_way(redis: Any, queue: str) -> dict[str, int]:
    """Return the virtual time charged to each tenant for announced and running jobs of a queue."""
    fields = {name.decode(): int(value) for name, value in redis.hgetall(keys.USAGE).items()}
    ending = f":{queue}"
    return {
        name.removeprefix("under_way:").removesuffix(ending): value
        for name, value in fields.items()
        if name.startswith("under_way:") and name.endswith(ending)
    }


def assert_usage_adds_up(redis: Any, queued: set[str], leased: set[str]) -> None:
    """Assert that the usage counters equal the waiting and running jobs."""
    expected: dict[str, int] = {}
    for i in queued | leased:
        fields = redis.hgetall(keys.job(i))
        amounts = {"unfinished": 1, "reserved": int(fields[b"reserved_bytes"])}
        if i in queued:
            amounts |= {"jobs": 1, "bytes": len(fields[b"doc"]), "tokens": int(fields[b"cost"])}
            if redis.zscore(keys.SCHEDULED, i) is None:
                name = f"queue_tokens:{fields[b'queue'].decode()}"
                expected[name] = expected.get(name, 0) + int(fields[b"cost"])
        for name, amount in amounts.items():
            for field in (name, f"{name}:{fields[b'tenant'].decode()}"):
                expected[field] = expected.get(field, 0) + amount
    counted = {name.decode(): int(value) for name, value in redis.hgetall(keys.USAGE).items()}
    waiting = {name: value for name, value in counted.items() if not name.startswith("under_way:")}
    assert waiting == {name: value for name, value in expected.items() if value}


def _tenant(redis: Any, job_id: bytes) -> str:
    return (redis.hget(keys.job(job_id.decode()), "tenant") or b"default").decode()
