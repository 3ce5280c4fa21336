"""A client of several brokers: each job is in one of them, and every verb finds it there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any, cast

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from batchmill.producer import (
    AsyncClient,
    BrokerUnavailable,
    CancelStatus,
    Client,
    IdempotencyConflict,
    JobResult,
    JobState,
    ShardMismatch,
    UnknownBatch,
    UnknownJob,
)
from batchmill.producer.encryption.key_ring import KeyRing
from batchmill.producer.job.batch import BatchState
from batchmill.producer.job.job_fields import JobFields
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls.new_job import NewJob
from batchmill.producer.protocol.media import media_id, media_names
from batchmill.producer.protocol.replies import SubmitReply
from batchmill.producer.settings import ProducerSettings
from batchmill.producer.shard_list import read_shard_list, shard_name_of
from batchmill.producer.store.async_shards import AsyncShards
from batchmill.producer.store.job_store import JobStore
from batchmill.producer.store.shards import Shards

from ..blocking_client import Blocking, LoopThread

#: Tenants whose jobs for the model "demo" go to each shard of (a b c); see `test_shard_list.py`.
TENANT = {"a": "t0", "b": "t1", "c": "t5"}


class Fleet:
    """Three shards in one server, which is enough for everything but the death of one."""

    def __init__(self, url: str) -> None:
        self.urls = {name: f"{url}?db={number}" for number, name in enumerate("abc")}
        self.url = self.listed("a", "b", "c")
        self.stores = {name: JobStore.from_url(one) for name, one in self.urls.items()}

    def listed(self, *names: str) -> str:
        """Return a list of shards; a name may have a mark."""
        return " ".join(f"{name}={self.urls[name[0]]}" for name in names)

    def where(self, job_id: str) -> list[str]:
        return [name for name, store in self.stores.items() if store.load(job_id) is not None]

    def finish(self, job_id: str) -> None:
        (name,) = self.where(job_id)
        store = self.stores[name]
        claim: Any = store.claim(job_id, owner="w", lease_ms=60_000, identity="m")
        result = JobResult(id=job_id, model="demo", status=JobState.COMPLETED, text=f"from {name}")
        store.complete(
            job_id,
            fence=claim.fence,
            state=JobState.COMPLETED,
            result=result.model_dump_json(),
            token_ids=[1],
        )

    def close(self) -> None:
        for store in self.stores.values():
            store.close()


@pytest.fixture
def fleet(redis_url: str) -> Iterator[Fleet]:
    fleet = Fleet(redis_url)
    yield fleet
    fleet.close()


@pytest.fixture(params=["synchronous", "asyncio"])
def client(request: pytest.FixtureRequest, fleet: Fleet) -> Iterator[Client]:
    with new_client(request.param, fleet.url) as client:
        yield client


@contextlib.contextmanager
def new_client(kind: str, url: str, **options: Any) -> Iterator[Client]:
    if kind == "synchronous":
        with Client(url, **options) as client:
            yield client
        return
    loop = LoopThread()
    async_client = AsyncClient(url, **options)
    try:
        yield cast(Client, Blocking(async_client, loop))
    finally:  # or else the test that fails leaves a warning to a later one
        loop.run(async_client.close())
        loop.close()


def submitted(client: Client, count: int = 6) -> list[str]:
    """Submit jobs that take turns between the shards."""
    tenants = list(TENANT.values())
    jobs = client.submit_many(
        {"prompt": f"p{i}", "tenant": tenants[i % 3], "tags": ["x"], "max_tokens": 2}
        for i in range(count)
    )
    return [job.id for job in jobs]


def test_a_job_is_in_the_shard_of_its_tenant_and_every_verb_finds_it(
    client: Client, fleet: Fleet
) -> None:
    for name, tenant in TENANT.items():
        job = client.submit("one", tenant=tenant)
        assert fleet.where(job.id) == [name]
        assert job.id.endswith(f"-{name}")
        assert job.status().tenant == tenant
        assert job.progress().output_tokens == 0
        assert job.cancel().status is CancelStatus.CANCELLED
        assert job.retry() == 2
        fleet.finish(job.id)
        assert job.result(timeout_s=30).text == f"from {name}"
        assert [piece.token_ids for piece in job.stream()] == [[1]]
        job.forget()
        job.forget()  # forgotten within the hour, in the same shard
        with pytest.raises(UnknownJob):
            job.status()


def test_many_jobs_go_to_their_shards_and_come_back_in_order(client: Client, fleet: Fleet) -> None:
    ids = submitted(client)
    assert [fleet.where(job_id) for job_id in ids] == [["a"], ["b"], ["c"]] * 2
    assert client.progress_many(ids).total == 6
    for job_id in ids[:4]:
        fleet.finish(job_id)
    answers = client.cancel_many([*ids[4:], "never"])
    assert list(answers) == [*ids[4:], "never"]
    assert [each.status for each in answers.values()] == [
        CancelStatus.CANCELLED,
        CancelStatus.CANCELLED,
        CancelStatus.UNKNOWN,
    ]
    ended = {each.id: each.state for each in client.as_completed(ids, timeout_s=30)}
    assert sorted(ended) == sorted(ids)
    assert list(ended.values()).count(JobState.COMPLETED) == 4


def test_a_list_of_jobs_is_one_list_over_all_shards(client: Client) -> None:
    ids = submitted(client, 9)
    seen: list[str] = []
    cursor = None
    while True:
        page = client.list(limit=2, cursor=cursor, tag="x")
        assert len(page.jobs) == len(page.cursors) <= 2
        seen += [job.id for job in page.jobs]
        if not page.has_more:
            break
        cursor = page.next_cursor
    assert sorted(seen) == sorted(ids)
    times = [client.status(job_id).enqueued_at_ms or 0 for job_id in seen]
    assert times == sorted(times, reverse=True)
    assert client.cancel_where(tag="x").cancelled == 9
    assert client.forget_where(tag="x").forgotten == 9


def test_an_id_of_a_caller_is_found_in_any_shard(client: Client, fleet: Fleet) -> None:
    ids = submitted(client, 3)
    record = fleet.stores["c"].client.dump(keys.job(ids[2]))
    fleet.stores["c"].client.restore(keys.job("order-7"), 0, cast(bytes, record))
    assert client.status("order-7").tenant == TENANT["c"]
    with pytest.raises(UnknownJob):
        client.status("order-8")


def test_a_batch_is_in_one_shard_whatever_its_lines_are(client: Client, fleet: Fleet) -> None:
    def lines() -> list[dict[str, Any]]:
        return [{"prompt": f"p{i}", "tenant": t} for i, t in enumerate(TENANT.values())]

    batch = client.create_batch(lines(), tenant=TENANT["b"], idempotency_key="k")
    again = client.create_batch(lines(), tenant=TENANT["b"], idempotency_key="k")
    other = client.create_batch(["alone"], tenant=TENANT["c"])
    assert batch.id == again.id
    assert (batch.id[-2:], other.id[-2:]) == ("-b", "-c")
    assert batch.request_counts.total == 3
    assert {each.id for each in client.batches()} == {other.id, batch.id}
    jobs = [job.id for job in client.list().jobs]
    assert sorted(map(str, map(shard_name_of, jobs))) == ["b", "b", "b", "c"]
    for job_id in jobs:
        fleet.finish(job_id)
    assert client.batch(batch.id).status is BatchState.COMPLETED
    texts = [entry.job.result().text for entry in client.batch_results(batch.id, timeout_s=30)]
    assert texts == ["from b"] * 3
    with pytest.raises(UnknownBatch):
        client.batch("batch_" + "0" * 32)


def test_pauses_and_replays_are_of_all_shards(client: Client, fleet: Fleet) -> None:
    assert client.pause(tenant="acme", reason="audit")
    assert all(keys.PAUSED.encode() in store.client.keys("*") for store in fleet.stores.values())
    assert [(pause.name, pause.reason) for pause in client.pauses()] == [("acme", "audit")]
    assert client.resume(tenant="acme")
    assert not client.resume(tenant="acme")
    assert client.replay_webhooks(timedelta(hours=1)).num_replayed == 0


def test_an_idempotency_key_stands_for_one_job_after_the_list_has_changed(fleet: Fleet) -> None:
    fields: JobFields = {"prompt": "p", "tenant": TENANT["c"], "idempotency_key": "k"}
    two = fleet.listed("a", "b")
    with Client(two) as client:
        first = client.submit(fields)
        batch = client.create_batch(["p"], tenant=TENANT["c"], idempotency_key="batch")
    assert fleet.where(first.id) != ["c"]
    accept(fleet, fleet.url)
    with Client(fleet.url) as client:
        assert read_shard_list(fleet.url).of_work("demo", TENANT["c"]).name == "c"
        assert client.submit(fields).id == first.id
        assert [job.id for job in client.submit_many([fields])] == [first.id]
        with pytest.raises(IdempotencyConflict):
            client.submit("other", tenant=TENANT["c"], idempotency_key="k")
        again = client.create_batch(["p"], tenant=TENANT["c"], idempotency_key="batch")
        assert again.id == batch.id
        assert fleet.where(client.submit("new", tenant=TENANT["c"]).id) == ["c"]


def test_a_shard_that_drains_gets_no_new_jobs_and_loses_none(fleet: Fleet) -> None:
    with Client(fleet.url) as client:
        old = client.submit("p", tenant=TENANT["b"])
    draining = fleet.listed("a", "b:draining", "c")
    accept(fleet, draining)
    with Client(draining) as client:
        new = client.submit("p", tenant=TENANT["b"])
        assert fleet.where(new.id)[0] in ("a", "c")
        fleet.finish(old.id)
        assert client.result(old.id, timeout_s=30).text == "from b"
    accept(fleet, fleet.listed("a", "c"))
    with Client(fleet.listed("a", "c")) as client:
        assert client.status(new.id).id == new.id
        with pytest.raises(ShardMismatch, match="is in shard 'b', which the list"):
            client.status(old.id)


def accept(fleet: Fleet, url: str) -> None:
    from batchmill.producer.store.shard_mark import accept_list, all_lists, read_mark

    shards = read_shard_list(url)
    marks = {shard.name: fleet.stores[shard.name].read(read_mark()) for shard in shards.shards}
    lists = all_lists(shards, list(marks.values()))
    for shard in shards.shards:
        fleet.stores[shard.name].read(accept_list(shard, shards, marks[shard.name], lists))


def test_programs_with_different_lists_are_told(client: Client, fleet: Fleet) -> None:
    submitted(client, 3)
    with (
        Client(fleet.listed("a", "b")) as other,
        pytest.raises(ShardMismatch, match=r"lists the shards .a b., and shard '.' belongs to"),
    ):
        other.submit("p", tenant=TENANT["a"])
    swapped = f"b={fleet.urls['a']} a={fleet.urls['b']} c={fleet.urls['c']}"
    with Client(swapped) as other, pytest.raises(ShardMismatch, match="noted that it is shard"):
        other.list()
    accept(fleet, fleet.listed("a", "b"))
    with Client(fleet.listed("a", "b")) as other:
        other.submit("p", tenant=TENANT["a"])
    accept(fleet, fleet.listed("a", "b:draining"))
    with Client(fleet.url) as late, pytest.raises(ShardMismatch, match="shards accept"):
        late.submit("p", tenant=TENANT["a"])


def test_an_away_shard_stops_only_its_own_jobs(client: Client, fleet: Fleet) -> None:
    away = f"a={fleet.urls['a']} b=unix:///nowhere c={fleet.urls['c']}"
    with Client(away, timeout_s=1) as partly:
        job = partly.submit("p", tenant=TENANT["a"])
        assert partly.status(job.id).tenant == TENANT["a"]
        with pytest.raises(BrokerUnavailable, match=r"shard 'b', broker at .*/nowhere") as caught:
            partly.submit("p", tenant=TENANT["b"])
        assert caught.value.shards == ("b",)


def test_calls_are_made_in_all_shards_that_reply_and_the_others_are_named(
    client: Client, fleet: Fleet
) -> None:
    ids = submitted(client, 6)
    client.pause(tenant="acme")
    away = f"a=unix:///gone b=unix:///nowhere c={fleet.urls['c']}"

    def states() -> list[JobState]:
        return [client.status(job_id).state for job_id in ids]

    with Client(away, timeout_s=0.5) as partly:
        with pytest.raises(BrokerUnavailable, match=r"shard 'a'.*gone.*shard 'b'.*/nowhere") as one:
            partly.cancel_many([*ids[:3], "order-7"])
        assert one.value.shards == ("a", "b")
        assert states().count(JobState.CANCELLED) == 1
        with pytest.raises(BrokerUnavailable, match="the other shards have done it"):
            partly.cancel_where(tag="x")
        assert states() == [JobState.QUEUED, JobState.QUEUED, JobState.CANCELLED] * 2
        with pytest.raises(BrokerUnavailable):
            partly.resume(tenant="acme")
        assert not fleet.stores["c"].client.exists(keys.PAUSED)


def test_media_are_stored_in_all_shards_that_reply(client: Client, fleet: Fleet) -> None:
    content = b"\x89PNG\r\n\x1a\n" + b"p" * 10
    some_id = client.put_media(content)
    messages: Any = [{"role": "user", "content": [{"type": "image", "media": some_id}]}]
    for name, tenant in TENANT.items():
        own = client.put_media(content, tenant=tenant)
        assert fleet.where(client.submit(messages=messages, tenant=tenant).id) == [name]
        assert own == some_id
    with Client(f"a=unix:///gone b={fleet.urls['b']} c={fleet.urls['c']}", timeout_s=0.5) as partly:
        with pytest.raises(BrokerUnavailable) as caught:
            partly.put_media(content + b"2")
        assert caught.value.shards == ("a",)
    (name,) = media_names(KeyRing(), keys.DEFAULT_TENANT, media_id(content + b"2"))
    assert fleet.stores["c"].client.exists(keys.media(name))


def test_a_key_that_is_in_use_is_found_though_a_shard_is_away(client: Client, fleet: Fleet) -> None:
    fields: JobFields = {"prompt": "p", "tenant": TENANT["a"], "idempotency_key": "k"}
    first = client.submit(fields)
    away = f"a={fleet.urls['a']} b=unix:///nowhere c={fleet.urls['c']}"
    with Client(away, timeout_s=0.5) as partly:
        assert partly.submit(fields).id == first.id
        assert partly.create_batch(["p"], tenant=TENANT["a"]).id.endswith("-a")
        other = partly.submit("p", tenant=TENANT["a"], idempotency_key="other")
        assert fleet.where(other.id) == ["a"]
        with pytest.raises(BrokerUnavailable, match="shard 'b'"):  # it belongs there
            partly.submit("p", tenant=TENANT["b"], idempotency_key="other")


def test_a_new_key_needs_the_shards_of_earlier_lists(fleet: Fleet) -> None:
    """A key that was given before `c` came may be in use where its tenant was then."""
    two = fleet.listed("a", "b")
    with Client(two) as client:
        before = read_shard_list(two).of_work("demo", TENANT["c"]).name
        first = client.submit("p", tenant=TENANT["c"], idempotency_key="k")
        client.create_batch(["p"], tenant=TENANT["c"], idempotency_key="k")
    accept(fleet, fleet.url)
    urls = fleet.urls | {before: "unix:///nowhere"}
    away = " ".join(f"{name}={url}" for name, url in urls.items())
    (stays,) = {"a", "b"} - {before}
    with Client(away, timeout_s=0.5) as partly:
        for tenant, is_refused in ((TENANT["c"], True), (TENANT[stays], False)):
            with contextlib.ExitStack() as stack:
                if is_refused:
                    stack.enter_context(pytest.raises(BrokerUnavailable, match=f"'{before}'"))
                job = partly.submit("p", tenant=tenant, idempotency_key="k")
                assert fleet.where(job.id) == [stays]
            with contextlib.ExitStack() as stack:
                if is_refused:
                    stack.enter_context(pytest.raises(BrokerUnavailable, match=f"'{before}'"))
                batch = partly.create_batch(["p"], tenant=tenant, idempotency_key="k")
                assert shard_name_of(batch.id) == stays
    assert fleet.where(first.id) == [before]


def test_where_earlier_lists_are_unknown_a_new_key_needs_all_shards(fleet: Fleet) -> None:
    """An older version noted no lists in b, so those that a knows may not be all."""
    with Client(fleet.listed("a", "b")) as client:
        client.batches()  # notes the list in both
    fleet.stores["b"].client.hdel(keys.SHARD, "lists")
    accept(fleet, fleet.url)
    away = f"a={fleet.urls['a']} b=unix:///nowhere c=unix:///nowhere"
    with Client(away, timeout_s=0.5) as partly, pytest.raises(BrokerUnavailable, match="shard 'b'"):
        partly.submit("p", tenant=TENANT["a"], idempotency_key="k")


@pytest.mark.parametrize("kind", ["synchronous", "asyncio"])
def test_an_error_names_the_jobs_that_the_other_shards_have_taken(fleet: Fleet, kind: str) -> None:
    away = f"a={fleet.urls['a']} b=unix:///nowhere c={fleet.urls['c']}"
    jobs = [JobFields(prompt="p", tenant=tenant) for tenant in TENANT.values()]
    with new_client(kind, away, timeout_s=0.5) as partly:
        with pytest.raises(BrokerUnavailable) as caught:
            partly.submit_many(jobs)
        with pytest.raises(BrokerUnavailable) as later:
            next(partly.iter_submit(jobs))
    assert caught.value.shards == ("b",)
    assert [fleet.where(job_id) for job_id in caught.value.job_ids] == [["a"], ["c"]]
    assert [fleet.where(job_id) for job_id in later.value.job_ids] == [["a"], ["c"]]


@pytest.mark.parametrize("kind", ["synchronous", "asyncio"])
def test_an_error_names_the_jobs_that_a_queue_took_before_it_was_full(
    fleet: Fleet, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The queue of t0 takes one of two jobs; its shard is away when the other is sent again."""
    rounds: list[int] = []

    def is_second(jobs: Sequence[NewJob]) -> bool:
        rounds.append(len(jobs))
        return len(rounds) == 2

    submit, submit_async = Shards.submit, AsyncShards.submit

    def submit_once(self: Shards, jobs: Sequence[NewJob]) -> list[SubmitReply]:
        if is_second(jobs):
            raise RedisConnectionError("away")
        return submit(self, jobs)

    async def submit_once_async(self: AsyncShards, jobs: Sequence[NewJob]) -> list[SubmitReply]:
        if is_second(jobs):
            raise RedisConnectionError("away")
        return await submit_async(self, jobs)

    monkeypatch.setattr(Shards, "submit", submit_once)
    monkeypatch.setattr(AsyncShards, "submit", submit_once_async)
    tenants = (TENANT["a"], TENANT["a"], TENANT["b"])
    jobs = [JobFields(prompt="p", tenant=tenant) for tenant in tenants]
    with (
        new_client(kind, fleet.url, settings=ProducerSettings(max_queue_depth=1)) as client,
        pytest.raises(BrokerUnavailable) as caught,
    ):
        client.submit_many(jobs, wait_when_full_s=60)
    assert rounds == [3, 1]
    assert [fleet.where(job_id) for job_id in caught.value.job_ids] == [["a"], ["b"]]


def test_one_url_notes_nothing_and_makes_plain_ids(fleet: Fleet) -> None:
    with Client(fleet.urls["a"]) as client:
        job = client.submit("p", idempotency_key="k")
        assert client.submit("p", idempotency_key="k").id == job.id
        client.list()
    assert shard_name_of(job.id) is None
    assert not fleet.stores["a"].client.exists(keys.SHARD)
