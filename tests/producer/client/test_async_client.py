"""The asyncio client does what the synchronous one does."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from batchmill.producer import (
    AsyncClient,
    AsyncJob,
    CancelStatus,
    Client,
    JobCancelled,
    JobFields,
    JobRejected,
    JobResult,
    JobState,
    QueueFull,
    ResultTimeout,
    UnknownJob,
)
from batchmill.producer.errors import BrokerUnavailable
from batchmill.producer.protocol import keys
from batchmill.producer.watch import wait_limits


@pytest.fixture
def run(redis_url: str) -> Callable[[Callable[[AsyncClient], Awaitable[Any]]], Any]:
    """Runs a coroutine function with a client, in a new event loop."""

    async def with_client(test: Callable[[AsyncClient], Awaitable[Any]]) -> Any:
        async with AsyncClient(redis_url) as client:
            return await test(client)

    return lambda test: asyncio.run(asyncio.wait_for(with_client(test), timeout=60))


def finish(bench: Any, job_id: str) -> None:
    fence = bench.claim(job_id).fence
    result = JobResult(id=job_id, model="demo", status=JobState.COMPLETED, text="done")
    text = result.model_dump_json()
    bench.store.complete(job_id, fence=fence, state=JobState.COMPLETED, result=text, token_ids=[5])


async def await_subscriber(bench: Any, job_id: str) -> None:
    while bench.redis.pubsub_numsub(keys.channel(job_id))[0][1] == 0:
        await asyncio.sleep(0)


def test_submit_status_and_result(run: Any, bench: Any) -> None:
    async def test(client: AsyncClient) -> None:
        job = await client.submit(prompt="hi", max_tokens=5)
        assert (await job.status()).state is JobState.QUEUED
        finish(bench, job.id)
        result = await client.job(job.id).result(timeout_s=0)
        assert (result.text, result.token_ids) == ("done", [5])

    run(test)


def test_a_waiting_task_is_woken_by_the_end_not_by_the_poll(
    run: Any, bench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wait_limits, "POLL_INTERVAL_S", 60.0)

    async def test(client: AsyncClient) -> None:
        job = await client.submit(prompt="hi")
        waiter = asyncio.create_task(job.result(timeout_s=50))
        await await_subscriber(bench, job.id)
        finish(bench, job.id)
        assert (await asyncio.wait_for(waiter, 20)).text == "done"

    run(test)


def test_many_tasks_wait_at_once(run: Any, bench: Any) -> None:
    async def test(client: AsyncClient) -> None:
        jobs = await client.submit_many(["hi"] * 30)
        waiters = [asyncio.create_task(job.result(timeout_s=50)) for job in jobs]
        for job in jobs:
            await await_subscriber(bench, job.id)
            finish(bench, job.id)
        assert [result.id for result in await asyncio.gather(*waiters)] == [j.id for j in jobs]

    run(test)


def test_waiting_can_be_cancelled_and_leaves_no_subscription(run: Any, bench: Any) -> None:
    async def test(client: AsyncClient) -> None:
        job = await client.submit(prompt="hi")
        waiter = asyncio.create_task(job.result())
        await await_subscriber(bench, job.id)
        waiter.cancel()
        done, _ = await asyncio.wait([waiter], timeout=60)
        assert done
        assert waiter.cancelled()
        while bench.redis.pubsub_numsub(keys.channel(job.id))[0][1]:
            await asyncio.sleep(0)

    run(test)


def test_a_task_whose_connections_are_cut_still_gets_the_result(run: Any, bench: Any) -> None:
    async def test(client: AsyncClient) -> None:
        job = await client.submit(prompt="hi")
        waiter = asyncio.create_task(job.result(timeout_s=50))
        for _ in range(3):
            await await_subscriber(bench, job.id)
            bench.redis.client_kill_filter(_type="pubsub")
        finish(bench, job.id)
        assert (await waiter).text == "done"

    run(test)


def test_the_same_errors_are_raised(run: Any, bench: Any) -> None:
    async def test(client: AsyncClient) -> None:
        with pytest.raises(JobRejected, match="max_tokens"):
            await client.submit(prompt="hi", max_tokens=0)
        job = await client.submit(prompt="hi")
        with pytest.raises(ResultTimeout):
            await job.result(timeout_s=0.05)
        assert (await job.cancel()).status is CancelStatus.CANCELLED
        with pytest.raises(JobCancelled):
            await job.result()
        for call in (client.status, client.result, client.cancel):
            with pytest.raises(UnknownJob):
                await call("nobody")
        bench.redis.config_set("maxmemory", "1")
        with pytest.raises(QueueFull):
            await client.submit(prompt="hi")

    run(test)


def test_a_broker_that_is_not_there_is_an_error() -> None:
    async def test() -> None:
        async with AsyncClient("redis://127.0.0.1:1/0") as client:
            with pytest.raises(BrokerUnavailable):
                await client.submit(prompt="hi")

    asyncio.run(test())


def test_many_jobs_from_an_asynchronous_source_keep_their_order(run: Any, bench: Any) -> None:
    async def source() -> AsyncIterator[JobFields]:
        for seed in range(703):
            await asyncio.sleep(0)
            yield {"prompt": "hi", "seed": seed}

    async def test(client: AsyncClient) -> list[AsyncJob]:
        return await client.submit_many(source())

    handles = run(test)
    seeds = [json.loads(bench.store.load(handle.id).document)["seed"] for handle in handles]
    assert seeds == list(range(703))


def test_a_rejected_job_raises_after_the_handles_of_those_before_it(run: Any, bench: Any) -> None:
    handles: list[AsyncJob] = []

    async def test(client: AsyncClient) -> None:
        async for handle in client.iter_submit(["a", ""]):
            handles.append(handle)  # noqa: PERF401  # keeps those before the error

    with pytest.raises(JobRejected):
        run(test)
    assert len(handles) == 1 == bench.store.counts().queued


def test_many_jobs_are_sent_at_once_or_warn(run: Any, bench: Any) -> None:
    async def test(client: AsyncClient) -> None:
        assert len(await client.submit_many(["a", "b"])) == 2
        with pytest.raises(JobRejected) as caught:
            await client.submit_many(["c", ""])
        assert len(caught.value.job_ids) == 1
        with pytest.warns(RuntimeWarning, match="nothing was sent"):
            client.iter_submit(["a"])

    run(test)
    assert bench.store.counts().queued == 3


def test_both_clients_have_the_same_verbs() -> None:
    def verbs(kind: type) -> set[str]:
        return {name for name in vars(kind) if not name.startswith("_")}

    assert verbs(Client) == verbs(AsyncClient)
