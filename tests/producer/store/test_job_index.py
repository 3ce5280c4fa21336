"""Jobs are found by tag and state, page by page, and cancelled or forgotten by tag."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from batchmill.producer import (
    AsyncClient,
    CancelCounts,
    Client,
    ForgetCounts,
    InvalidQuery,
    JobFilter,
    JobPage,
    JobRejected,
    JobState,
)
from batchmill.producer.protocol import keys

QUEUE = keys.queue_name("demo", "normal")


def finish(bench: Any, job_id: str, state: JobState = JobState.COMPLETED) -> None:
    fence = bench.claim(job_id).fence
    bench.store.complete(job_id, fence=fence, state=state, result="{}")


def let_run_out(bench: Any, job_id: str) -> None:
    """As if the time to live of an ended job's record had passed."""
    bench.redis.delete(keys.job(job_id), keys.tokens(job_id), keys.text(job_id))
    for entry in bench.redis.zrange(keys.EXPIRING, 0, -1):
        if entry.startswith(job_id.encode() + b"\n"):
            bench.redis.zadd(keys.EXPIRING, {entry: 1})


def pages(client: Client, limit: int, **query: Any) -> Iterator[JobPage]:
    """Every page; the caller may change the store between two of them."""
    cursor = None
    while True:
        page = client.list(limit=limit, cursor=cursor, **query)
        yield page
        if not page.has_more:
            return
        cursor = page.next_cursor


def ids(page: JobPage) -> list[str]:
    return [job.id for job in page.jobs]


def test_jobs_are_listed_newest_first_with_where_they_are(bench: Any, client: Client) -> None:
    old = client.submit(prompt="hi", tags=["mail", "night run"])
    new = client.submit(prompt="hi")
    at = {old.id: 1000, new.id: 2000}
    for job_id, at_ms in at.items():
        set_time(bench, job_id, at_ms)
    finish(bench, old.id)
    page = client.list()
    assert ids(page) == [new.id, old.id]
    assert page.next_cursor is None
    assert page.jobs[1] == client.status(old.id)
    assert page.jobs[1].tags == ["mail", "night run"]
    assert page.jobs[1].state is JobState.COMPLETED


def test_a_tag_and_a_state_narrow_the_list(bench: Any, client: Client) -> None:
    for number in range(6):
        tags = ("even",) if number % 2 == 0 else ("odd", "every")
        bench.submit(f"j{number}", tags=tags)
        if number >= 3:
            finish(bench, f"j{number}", JobState.FAILED if number == 5 else JobState.COMPLETED)
    assert set(ids(client.list(tag="even"))) == {"j0", "j2", "j4"}
    assert set(ids(client.list(state="completed"))) == {"j3", "j4"}
    assert ids(client.list(tag="odd", state="failed")) == ["j5"]
    assert ids(client.list(tag="odd", state="cancelled")) == []
    assert ids(client.list(tag="eve")) == []


def test_jobs_of_a_tenant_are_found_with_and_without_a_tag(bench: Any, client: Client) -> None:
    for name in ("acme", "zed", keys.DEFAULT_TENANT):
        bench.submit(f"{name}1", tenant=name, tags=("t",))
        bench.submit(f"{name}2", tenant=name)
    client.cancel("acme2")
    assert set(ids(client.list(tenant="acme"))) == {"acme1", "acme2"}
    assert ids(client.list(tenant="zed", tag="t")) == ["zed1"]
    assert ids(client.list(tenant="acme", state="cancelled")) == ["acme2"]
    assert set(ids(client.list(tenant=keys.DEFAULT_TENANT))) == {"default1", "default2"}
    assert client.list(tenant="acme").jobs[0].tenant == "acme"
    assert client.cancel_where(tenant="acme") == CancelCounts(1, 0, 1)
    assert client.cancel_where(tenant="zed", tag="t") == CancelCounts(1)
    assert set(ids(client.list(state="queued"))) == {"zed2", "default1", "default2"}


@pytest.mark.parametrize("query", [{}, {"tag": "t"}, {"tenant": "acme"}], ids=str)
def test_every_job_that_stays_is_met_once_however_jobs_change_meanwhile(
    bench: Any, client: Client, query: dict[str, Any]
) -> None:
    for number in range(60):
        bench.submit(f"j{number}", tags=("t",), tenant="acme")
    draw = random.Random(7)
    kept = {f"j{number}" for number in range(60)}
    met: list[str] = []
    for turn, page in enumerate(pages(client, 7, **query)):
        met += ids(page)
        bench.submit(f"late{turn}", tags=("t",), tenant="acme")
        for job_id in draw.sample(sorted(kept), 6):
            change(bench, client, job_id, draw)
        gone = draw.choice(sorted(kept - set(met)) or sorted(kept))
        bench.store.cancel(gone)
        if bench.state(gone) == "cancelled":
            client.forget(gone)
            kept.discard(gone)
    assert len(met) == len(set(met))
    assert kept <= set(met)


def change(bench: Any, client: Client, job_id: str, draw: random.Random) -> None:
    """Bring a job to another state, in one of the ways there are."""
    state = bench.state(job_id)
    if state == "queued":
        if draw.random() < 0.5:
            bench.claim(job_id)
        else:
            client.cancel(job_id)
    elif state == "in_progress":
        bench.lose_lease(job_id)
        bench.store.sweep()
    elif state in ("cancelled", "failed"):
        client.retry(job_id)


def test_jobs_of_one_millisecond_are_paged_as_well(bench: Any, client: Client) -> None:
    names = [f"{letter}{number}" for letter in "aB-_9" for number in range(30)]
    for name in names:
        bench.submit(name, tags=("t",))
    same = dict.fromkeys(names, 5)
    bench.redis.zadd(keys.state_index("queued"), same)
    bench.redis.zadd(keys.tag_index("t"), same)
    for query in ({}, {"tag": "t"}):
        met = [job_id for page in pages(client, 4, **query) for job_id in ids(page)]
        assert sorted(met) == sorted(names)
        assert len(met) == len(names)


def test_all_jobs_are_iterated_over(bench: Any, client: Client) -> None:
    for number in range(30):
        bench.submit(f"j{number}", tags=("t",))
        if number % 10 == 0:
            client.cancel(f"j{number}")
    found = client.iter_jobs(tag="t", state="cancelled")
    assert {job.id for job in found} == {"j0", "j10", "j20"}


def test_a_page_goes_on_past_entries_that_do_not_match(
    bench: Any, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batchmill.producer.store.job_index.MAX_EXAMINED", 3)
    for number in range(20):
        tags = ("t", "u") if number in (0, 19) else ("tu"[number % 2],)
        bench.submit(f"j{number}", tags=tags, tenant="acme")
    for number in range(20):
        client.cancel(f"j{number}")
    # Neither the tag's nor the state's index is short, whichever is read.
    expected = {"j0", "j19", *(f"j{number}" for number in range(2, 19, 2))}
    found = client.list(tag="t", state="cancelled", tenant="acme", limit=20)
    assert set(ids(found)) == expected
    assert found.next_cursor is None
    first = client.list(tag="t", state="cancelled", tenant="acme", limit=4)
    assert len(first.jobs) == 4
    rest = client.list(tag="t", state="cancelled", tenant="acme", cursor=first.next_cursor)
    assert sorted([*ids(first), *ids(rest)]) == sorted(expected)


def test_index_entries_go_with_their_record(bench: Any, client: Client) -> None:
    for number in range(5):
        bench.submit(f"j{number}", tags=("t", "u"))
        finish(bench, f"j{number}")
    for number in range(4):
        let_run_out(bench, f"j{number}")
    assert ids(client.list(tag="t")) == ids(client.list()) == ["j4"]
    assert bench.store.sweep(limit=3).unindexed == 3
    assert bench.store.sweep(limit=3).unindexed == 1
    for index in (keys.state_index("completed"), keys.tag_index("t"), keys.tag_index("u")):
        assert bench.redis.zrange(index, 0, -1) == [b"j4"]


def test_a_record_that_is_kept_longer_by_hand_keeps_its_entries(bench: Any, client: Client) -> None:
    bench.submit("j", tags=("t",))
    finish(bench, "j")
    [entry] = bench.redis.zrange(keys.EXPIRING, 0, -1)
    bench.redis.zadd(keys.EXPIRING, {entry: 1})
    bench.store.sweep()
    assert ids(client.list(tag="t")) == ["j"]
    assert bench.redis.zscore(keys.EXPIRING, entry) > 1


def test_an_id_that_is_used_again_keeps_the_entries_of_its_new_record(
    bench: Any, client: Client
) -> None:
    bench.submit("j", tags=("t", "old"))
    finish(bench, "j")
    let_run_out(bench, "j")
    bench.store.adopt(bench.new_job("j", tags=("t",)))
    assert ids(client.list()) == ["j"]  # not in the state that it had once
    bench.store.sweep()
    assert ids(client.list(tag="t")) == ids(client.list(state="queued")) == ["j"]
    assert ids(client.list(tag="old")) == ids(client.list(state="completed")) == []


def test_jobs_of_a_tag_are_cancelled_and_no_others(bench: Any, client: Client) -> None:
    for number in range(450):
        bench.submit(f"t{number}", tags=("t",))
    bench.submit("other", tags=("tt", "u"))
    bench.claim("t7")
    finish(bench, "t8")
    # An entry that lies: its record says that the job is another's.
    bench.redis.zadd(keys.tag_index("t"), {"other": 5})
    assert client.cancel_where(tag="t") == CancelCounts(448, 1, 1)
    assert bench.state("other") == "queued"
    assert bench.store.load("t7").cancel_requested
    assert client.cancel_where(tag="t") == CancelCounts(0, 1, 449)
    bench.redis.zrem(keys.tag_index("t"), "other")


def test_ended_jobs_of_a_tag_are_forgotten_and_no_others(bench: Any, client: Client) -> None:
    for number in range(230):
        bench.submit(f"t{number}", tags=("t", "u"))
        client.cancel(f"t{number}")
    bench.submit("active", tags=("t",))
    bench.submit("other", tags=("u",))
    client.cancel("other")
    assert client.forget_where(tag="t") == ForgetCounts(230, 1)
    assert set(ids(client.list())) == {"active", "other"}
    assert ids(client.list(tag="u")) == ["other"]


@pytest.mark.parametrize(
    "query",
    [
        {"tag": ""},
        {"tag": "a,b"},
        {"tag": "line\n"},
        {"tag": "x" * 65},
        {"tenant": "no name"},
        {"state": "done"},
        {"cursor": "yesterday"},
        {"limit": 0},
        {"limit": 1001},
    ],
    ids=str,
)
def test_what_cannot_be_asked_for_is_refused(client: Client, query: dict[str, Any]) -> None:
    with pytest.raises(InvalidQuery):
        client.list(**query)


def test_all_jobs_at_once_are_neither_cancelled_nor_forgotten(client: Client) -> None:
    for verb in (client.cancel_where, client.forget_where):
        with pytest.raises(InvalidQuery, match="give a tag"):
            verb()


@pytest.mark.parametrize(
    "tags", [["a", "a"], ["a,b"], [""], ["x" * 65], ["\t"], [str(i) for i in range(17)], ["\ud800"]]
)
def test_tags_that_cannot_be_are_refused(client: Client, tags: list[str]) -> None:
    with pytest.raises(JobRejected) as refused:
        client.submit(prompt="hi", tags=tags)
    assert refused.value.param is not None
    assert refused.value.param.startswith("tags")


def test_the_asyncio_client_does_the_same(redis_url: str, bench: Any) -> None:
    async def test() -> None:
        async with AsyncClient(redis_url) as client:
            jobs = [await client.submit(prompt="hi", tags=["t"]) for _ in range(5)]
            page = await client.list(tag="t", limit=2)
            rest = await client.list(tag="t", cursor=page.next_cursor)
            assert {*ids(page), *ids(rest)} == {job.id for job in jobs}
            assert await client.cancel_where(tag="t") == CancelCounts(cancelled=5)
            assert await jobs[0].retry() == 2
            assert [job.id async for job in client.iter_jobs(state="queued")] == [jobs[0].id]
            await jobs[1].forget()
            assert await client.forget_where(tag="t") == ForgetCounts(3, 1)
            with pytest.raises(InvalidQuery):
                await client.list(limit=0)

    asyncio.run(asyncio.wait_for(test(), timeout=60))


def set_time(bench: Any, job_id: str, at_ms: int) -> None:
    """As if a job had been submitted at a time."""
    bench.redis.hset(keys.job(job_id), "enqueued_at_ms", at_ms)
    bench.redis.zadd(keys.state_index("queued"), {job_id: at_ms})


def submit_at(bench: Any, client: Client, at_ms: int, **fields: Any) -> str:
    """Submit a job as if at a time."""
    job = client.submit(prompt="hi", **fields)
    set_time(bench, job.id, at_ms)
    return str(job.id)


def test_a_model_and_a_queue_narrow_the_list(bench: Any, client: Client) -> None:
    mine = submit_at(bench, client, 3000, model="org/m")
    high = submit_at(bench, client, 2000, model="org/m", priority="high")
    submit_at(bench, client, 1000, model="org/m.high")  # its queues begin like those of org/m
    assert ids(client.list(model="org/m")) == [mine, high]
    assert ids(client.list(queue="batchmill.org/m.high")) == [high]
    assert ids(client.list(model="org/m", queue="batchmill.org/m.normal")) == [mine]
    assert ids(client.list(model="org")) == []
    finish(bench, high)
    assert ids(client.list(model="org/m", state="queued")) == [mine]


def test_times_of_submission_narrow_the_list_and_every_page(bench: Any, client: Client) -> None:
    found = [submit_at(bench, client, at_ms) for at_ms in (1000, 2000, 2000, 3000, 4000)]
    first, *twins, third, last = found
    assert ids(client.list(since=2.0, until=4.0)) == [third, *sorted(twins, reverse=True)]
    assert ids(client.list(since=datetime.fromtimestamp(4, UTC))) == [last]
    assert ids(client.list(until=1.0005)) == [first]
    one_by_one = [job.id for page in pages(client, 1, since=1.5, until=3.5) for job in page.jobs]
    assert one_by_one == [third, *sorted(twins, reverse=True)]
    # A cursor of another query does not lead beyond the times of this one.
    newest = client.list(limit=1).next_cursor
    assert ids(client.list(until=2.5, cursor=newest)) == [*sorted(twins, reverse=True), first]


@pytest.mark.parametrize(
    ("filters", "reason"),
    [
        ({"model": "no model"}, "model 'no model'"),
        ({"queue": "celery"}, "'celery' is not a queue"),
        ({"queue": "batchmill.demo.urgent"}, "priority is 'urgent'"),
        ({"since": datetime(2026, 12, 1)}, "without a time zone"),  # noqa: DTZ001
        ({"until": float("nan")}, "until is nan"),
        ({"since": -1.0}, "since is -1.0"),
    ],
)
def test_an_invalid_filter_is_refused(client: Client, filters: JobFilter, reason: str) -> None:
    with pytest.raises(InvalidQuery, match=reason):
        client.list(**filters)
    with pytest.raises(InvalidQuery, match=reason):
        client.cancel_where(**filters)


def test_jobs_are_cancelled_by_model_queue_state_and_time(bench: Any, client: Client) -> None:
    wrong = [submit_at(bench, client, 1000 + number, model="gpt-4") for number in range(150)]
    running = submit_at(bench, client, 500, model="gpt-4")
    kept = submit_at(bench, client, 400)
    bench.claim(running)
    assert client.cancel_where(model="gpt-4", since=1.1) == CancelCounts(cancelled=50)
    assert client.cancel_where(model="gpt-4", state="queued") == CancelCounts(cancelled=100)
    assert client.cancel_where(model="gpt-4") == CancelCounts(cancelling=1)
    assert client.status(wrong[0]).state is JobState.CANCELLED
    assert client.status(kept).state is JobState.QUEUED
    assert client.cancel_where(queue="batchmill.demo.normal").cancelled == 1


def test_a_cancellation_needs_a_filter_that_unfinished_jobs_can_match(client: Client) -> None:
    with pytest.raises(InvalidQuery, match="every job would be cancelled; give a tag"):
        client.cancel_where()
    with pytest.raises(InvalidQuery, match="such jobs have ended"):
        client.cancel_where(state="failed", tag="x")
