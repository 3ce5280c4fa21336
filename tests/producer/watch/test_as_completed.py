"""Waiting for many jobs at once, over one connection."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from batchmill.producer import (
    AsyncClient,
    CancelStatus,
    Client,
    JobCancelled,
    JobResult,
    JobState,
    ResultTimeout,
    UnknownJob,
)
from batchmill.producer.protocol import keys


def finish(bench: Any, job_id: str, text: str = "done") -> None:
    fence = bench.claim(job_id).fence
    result = JobResult(id=job_id, model="demo", status=JobState.COMPLETED, text=text)
    bench.store.complete(
        job_id,
        fence=fence,
        state=JobState.COMPLETED,
        result=result.model_dump_json(),
        token_ids=[1, 2],
    )


def submitted(client: Client, count: int) -> list[str]:
    jobs = client.submit_many({"prompt": f"p{i}", "max_tokens": 2} for i in range(count))
    return [job.id for job in jobs]


def test_each_job_comes_once_in_the_order_of_the_ends(client: Client, bench: Any) -> None:
    ids = submitted(client, 3)
    finish(bench, ids[2], "early")
    stream = client.as_completed([*ids, ids[2]], timeout_s=30)
    first = next(stream)
    assert (first.id, first.result().text, first.result().token_ids) == (
        ids[2],
        "early",
        [1, 2],
    )
    finish(bench, ids[1])
    assert next(stream).id == ids[1]
    client.cancel(ids[0])
    last = next(stream)
    assert (last.id, last.state) == (ids[0], JobState.CANCELLED)
    with pytest.raises(JobCancelled):
        last.result()
    assert list(stream) == []


def test_a_thousand_jobs_are_watched_over_two_connections(client: Client, bench: Any) -> None:
    ids = submitted(client, 1000)
    before = len(bench.redis.client_list())

    def finish_all() -> None:
        for job_id in ids:
            finish(bench, job_id)

    thread = threading.Thread(target=finish_all)
    stream = client.as_completed(map(client.job, ids), timeout_s=60)
    thread.start()
    seen = [next(stream).id]
    # One for the channels; the finishing thread and the looks have one of their own each.
    assert len(bench.redis.client_list()) <= before + 3
    seen += [job.id for job in stream]
    thread.join()
    assert sorted(seen) == sorted(ids)


def test_a_job_that_is_not_there_ends_the_wait_for_it_alone(client: Client, bench: Any) -> None:
    [gone] = client.as_completed(["gen_gone"], timeout_s=10)
    assert gone.state is None
    with pytest.raises(UnknownJob):
        gone.result()


def test_timeout_is_raised_after_the_jobs_that_have_ended(client: Client, bench: Any) -> None:
    ids = submitted(client, 2)
    finish(bench, ids[0])
    stream = client.as_completed(ids, timeout_s=0)
    assert next(stream).id == ids[0]
    with pytest.raises(ResultTimeout, match="1 job did not end"):
        next(stream)


def test_an_end_is_seen_although_the_connection_was_cut(client: Client, bench: Any) -> None:
    ids = submitted(client, 2)
    finish(bench, ids[0])
    stream = client.as_completed(ids, timeout_s=30)
    assert next(stream).id == ids[0]
    bench.redis.client_kill_filter(_type="pubsub")
    finish(bench, ids[1])
    assert [job.id for job in stream] == [ids[1]]


def test_the_asyncio_client_does_the_same(redis_url: str, bench: Any) -> None:
    async def test() -> list[str]:
        async with AsyncClient(redis_url) as client:
            jobs = [await client.submit(prompt="hi") for _ in range(3)]
            finish(bench, jobs[1].id)
            stream = client.as_completed(jobs, timeout_s=30)
            seen = [(await anext(stream)).id]
            bench.redis.client_kill_filter(_type="pubsub")
            await client.cancel_many(jobs)
            seen += [job.id async for job in stream]
            return [*seen, *(job.id for job in jobs)]

    seen = asyncio.run(asyncio.wait_for(test(), 60))
    assert seen[0] == seen[4]
    assert sorted(seen[:3]) == sorted(seen[3:])


def test_many_are_cancelled_at_once(client: Client, bench: Any) -> None:
    ids = submitted(client, 3)
    bench.claim(ids[1])
    finish(bench, ids[2])
    answers = client.cancel_many([client.job(ids[0]), *ids, "gen_gone"])
    assert [answers[job_id].status for job_id in [*ids, "gen_gone"]] == [
        CancelStatus.CANCELLED,
        CancelStatus.CANCELLING,
        CancelStatus.ALREADY_TERMINAL,
        CancelStatus.UNKNOWN,
    ]
    assert bench.redis.exists(keys.job("gen_gone")) == 0
