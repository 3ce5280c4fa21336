"""How far jobs are, and the estimate of when they are done."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from batchmill.producer import (
    AsyncClient,
    Client,
    EtaUnknown,
    Job,
    JobState,
    ProgressSummary,
    UnknownJob,
)
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.replies import TokenWrite

from ...support.worker_info import worker_info

NORMAL = keys.queue_name("demo", "normal")


def announce_worker(bench: Any, name: str = "worker-1", **changes: Any) -> None:
    stats = {"jobs": 2, "tokens_per_s": 100.0}
    info = worker_info(name, **({"identity": "model-1", "stats": stats} | changes))
    bench.store.announce_worker(info)


def write_tokens(bench: Any, job_id: str, num_tokens: int) -> None:
    fence = bench.fence(job_id)
    bench.store.checkpoint([TokenWrite(job_id, fence, 0, [7] * num_tokens)], lease_ms=60_000)


def announced_in_turn(bench: Any, jobs: list[Job]) -> None:
    """Jobs of one millisecond are in no certain order: give these one, after all others."""
    for number, job in enumerate(jobs):
        bench.redis.zadd(keys.queued(NORMAL), {job.id: 10**14 + number}, xx=True)


def test_a_running_job_has_its_share_of_its_workers_speed(bench: Any, client: Client) -> None:
    job = client.submit(prompt="hi", max_tokens=120)
    bench.claim(job.id)
    write_tokens(bench, job.id, 20)
    announce_worker(bench)
    announce_worker(bench, "worker-2", stats={"jobs": 1, "tokens_per_s": 500.0})
    progress = job.progress()
    assert (progress.state, progress.output_tokens, progress.max_tokens) == ("in_progress", 20, 120)
    assert (progress.tokens_per_s, progress.queue_position) == (50, None)
    assert progress.eta_s == 2  # 100 tokens to go at 100 / 2 a second
    assert progress.eta_unknown is None


def test_a_waiting_job_waits_for_those_before_it(bench: Any, client: Client) -> None:
    jobs = [client.submit(prompt="hi", max_tokens=100) for _ in range(3)]
    client.submit(prompt="hi", max_tokens=100, priority="high")
    announced_in_turn(bench, jobs)
    announce_worker(bench)
    progress = jobs[2].progress()
    assert (progress.queue_position, progress.tokens_per_s) == (3, None)
    assert progress.eta_s == 3 * 100 / 100 + 100 / 50


@pytest.mark.parametrize(
    ("worker", "why"),
    [
        (None, EtaUnknown.NO_WORKER),
        ({"queues": keys.queue_names("other")}, EtaUnknown.NO_WORKER),
        ({"state": "draining"}, EtaUnknown.NO_WORKER),
        ({"stats": {"jobs": 0, "tokens_per_s": 0.0}}, EtaUnknown.NO_SPEED),
        ({"stats": {}}, EtaUnknown.NO_SPEED),
    ],
)
def test_where_no_end_is_foreseen_the_reason_is_told(
    bench: Any, client: Client, worker: dict[str, Any] | None, why: EtaUnknown
) -> None:
    job = client.submit(prompt="hi")
    if worker is not None:
        announce_worker(bench, **worker)
    assert (job.progress().eta_s, job.progress().eta_unknown) == (None, why)
    summary = client.progress_many([job])
    assert (summary.eta_s, summary.eta_unknown) == (None, why)


def test_a_delayed_job_and_one_of_unknown_length_have_no_eta(bench: Any, client: Client) -> None:
    announce_worker(bench)
    delayed = client.submit(prompt="hi", delay_s=3600)
    assert delayed.progress().eta_unknown is EtaUnknown.SCHEDULED
    bench.submit("old")  # its record says nothing of max_tokens
    assert client.progress("old").eta_unknown is EtaUnknown.NO_LENGTH


def test_an_ended_job_is_done(bench: Any, client: Client) -> None:
    job = client.submit(prompt="hi")
    job.cancel()
    assert (job.progress().eta_s, job.progress().queue_position) == (0, None)
    with pytest.raises(UnknownJob):
        client.progress("nobody")


def test_many_jobs_are_summed_up(bench: Any, client: Client) -> None:
    jobs = [client.submit(prompt="hi", max_tokens=100) for _ in range(6)]
    jobs[0].cancel()
    for job in jobs[1:3]:
        bench.claim(job.id)
        write_tokens(bench, job.id, 50)
    announce_worker(bench)
    summary = client.progress_many([*jobs, jobs[0].id, "nobody"])
    assert summary == ProgressSummary(
        total=7,
        done=1,
        unknown=1,
        states={JobState.CANCELLED: 1, JobState.IN_PROGRESS: 2, JobState.QUEUED: 3},
        output_tokens=100,
        tokens_per_s=100,
        eta_s=(2 * 50 + 3 * 100) / 100,
    )


def test_others_before_the_last_of_many_jobs_count(bench: Any, client: Client) -> None:
    for _ in range(5):
        client.submit(prompt="hi", max_tokens=9)
    jobs = [client.submit(prompt="hi", max_tokens=100) for _ in range(3)]
    announced_in_turn(bench, jobs)
    bench.redis.hset(keys.job(jobs[2].id), "enqueued_at_ms", 10**15)
    announce_worker(bench)
    assert client.progress_many(jobs).eta_s == 8 * 100 / 100


def test_no_jobs_and_ended_jobs_are_all_done(client: Client) -> None:
    assert client.progress_many([]) == ProgressSummary(total=0, done=0, eta_s=0)
    job = client.submit(prompt="hi")
    job.cancel()
    summary = client.progress_many([job])
    assert (summary.done, summary.eta_s, summary.eta_unknown) == (1, 0, None)


def test_many_jobs_take_few_round_trips(bench: Any, client: Client) -> None:
    jobs = client.submit_many("hi" for _ in range(1200))
    announce_worker(bench)
    before = bench.redis.info("stats")["total_reads_processed"]
    assert client.progress_many(jobs).states == {JobState.QUEUED: 1200}
    assert bench.redis.info("stats")["total_reads_processed"] - before < 60


def test_the_asyncio_client_estimates_the_same(redis_url: str, bench: Any, client: Client) -> None:
    jobs = [client.submit(prompt="hi", max_tokens=100) for _ in range(3)]
    bench.claim(jobs[0].id)
    announce_worker(bench)

    async def test() -> None:
        async with AsyncClient(redis_url) as other:
            for job in jobs:
                assert await other.job(job.id).progress() == job.progress()
            ids = [job.id for job in jobs]
            assert await other.progress_many(ids) == client.progress_many(ids)
            with pytest.raises(UnknownJob):
                await other.progress("nobody")

    asyncio.run(asyncio.wait_for(test(), timeout=60))
