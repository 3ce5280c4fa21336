"""Batches: one state and exact counts for many jobs, whatever becomes of each of them."""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from batchmill.producer import (
    AsyncClient,
    BatchClosed,
    BatchState,
    BatchStatus,
    Client,
    IdempotencyConflict,
    JobRejected,
    ProducerSettings,
    ResultTimeout,
    UnknownBatch,
    batch_calls,
    keys,
)
from batchmill.producer.answers import Claim, Held, JobState, OutboxEntry, ReleaseCause
from batchmill.producer.bulk_answers import line_of
from batchmill.producer.bulk_lines import LineKind
from batchmill.producer.store import JobStore

QUEUE = keys.queue_name("demo", "normal")
HOOK = "https://example.com/batches"


@pytest.fixture
def client(redis_url: str) -> Iterator[Client]:
    with Client(redis_url) as client:
        yield client


def lines(number: int, **fields: Any) -> list[dict[str, Any]]:
    return [{"prompt": f"p{i}", "custom_id": f"c{i}", "seed": i, **fields} for i in range(number)]


def ids_of(bench: Any, batch_id: str) -> list[str]:
    """A batch's jobs in the order of the input."""
    return [i.decode() for i in bench.redis.zrange(keys.batch_jobs(batch_id), 0, -1)]


def end(store: JobStore, job_id: str, state: JobState = JobState.COMPLETED) -> int:
    """Bring a job to its end; returns the fence it was done under."""
    claim = store.claim(job_id, owner="w", lease_ms=60_000, identity="i")
    assert isinstance(claim, Claim)
    complete(store, job_id, claim.fence, state)
    return claim.fence


def complete(store: JobStore, job_id: str, fence: int, state: JobState) -> None:
    result = {"id": job_id, "model": "demo", "status": state.value, "text": f"about {job_id}"}
    store.complete(job_id, fence=fence, state=state, result=json.dumps(result))


def events(bench: Any) -> list[OutboxEntry]:
    """What is due for the batch's receiver."""
    due = bench.store.outbox_claim(owner="d", limit=100, lease_ms=60_000)
    return [event for event in due if event.url == HOOK]


def counts(batch: BatchStatus) -> tuple[int, int, int]:
    numbers = batch.request_counts
    return numbers.total, numbers.completed, numbers.failed


def test_a_batch_ends_with_its_last_job_and_owes_one_event(bench: Any, client: Client) -> None:
    batch = client.create_batch(lines(3), webhook=HOOK, metadata={"order": "7"})
    assert (batch.status, counts(batch)) == (BatchState.IN_PROGRESS, (3, 0, 0))
    first, second, third = ids_of(bench, batch.id)
    end(bench.store, first)
    end(bench.store, second, JobState.FAILED)
    assert counts(client.batch(batch.id)) == (3, 1, 1)
    assert events(bench) == []
    end(bench.store, third)
    batch = client.batch(batch.id)
    assert (batch.status, counts(batch)) == (BatchState.COMPLETED, (3, 2, 1))
    assert batch.completed_at == batch.finalizing_at
    assert batch.created_at <= (batch.in_progress_at or 0) <= (batch.completed_at or 0)
    assert batch.metadata == {"order": "7"}
    [event] = events(bench)
    assert (event.type, event.job_id) == ("batch.completed", batch.id)
    assert event.event_id == f"evt_{batch.id}_completed"
    assert bench.redis.ttl(keys.batch(batch.id)) > 0


def test_a_batch_waits_for_its_last_line(bench: Any, client: Client) -> None:
    """All jobs so far have ended before the batch knows how many there will be."""

    def slow_lines() -> Iterator[dict[str, Any]]:
        for line in lines(501):
            if line["custom_id"] == "c500":
                [found] = client.batches()
                for job_id in ids_of(bench, found.id):
                    end(bench.store, job_id)
                found = client.batch(found.id)
                assert (found.status, counts(found)) == (BatchState.VALIDATING, (500, 500, 0))
            yield line

    batch = client.create_batch(slow_lines())
    assert (batch.status, counts(batch)) == (BatchState.IN_PROGRESS, (501, 500, 0))


def test_an_empty_batch_is_completed_at_once(bench: Any, client: Client) -> None:
    batch = client.create_batch([], webhook=HOOK)
    assert (batch.status, counts(batch)) == (BatchState.COMPLETED, (0, 0, 0))
    assert [event.type for event in events(bench)] == ["batch.completed"]


def test_a_repeated_complete_counts_once(bench: Any, client: Client) -> None:
    batch = client.create_batch(lines(2))
    job_id = ids_of(bench, batch.id)[0]
    fence = end(bench.store, job_id)
    for state in (JobState.COMPLETED, JobState.FAILED):
        complete(bench.store, job_id, fence, state)
    bench.store.cancel(job_id)
    assert counts(client.batch(batch.id)) == (2, 1, 0)


def test_a_job_that_is_retried_in_time_is_waited_for_again(bench: Any, client: Client) -> None:
    batch = client.create_batch(lines(2))
    first, second = ids_of(bench, batch.id)
    end(bench.store, first, JobState.FAILED)
    client.retry(first)
    assert counts(client.batch(batch.id)) == (2, 0, 0)
    end(bench.store, second, JobState.FAILED)
    assert client.batch(batch.id).status is BatchState.IN_PROGRESS
    end(bench.store, first)
    assert client.batch(batch.id).status is BatchState.COMPLETED
    client.retry(second)  # too late: the batch has told how it ended
    end(bench.store, second)
    assert counts(client.batch(batch.id)) == (2, 1, 1)


def test_a_refused_line_fails_the_batch_and_cancels_the_others(bench: Any, client: Client) -> None:
    wrong = [*lines(2), {"prompt": "secret", "temperature": -1.0}, *lines(1)]
    with pytest.raises(JobRejected, match="temperature") as refused:
        client.create_batch(wrong, webhook=HOOK)
    [batch] = client.batches()
    assert refused.value.__notes__ == [f"line 3 of {batch.id}"]
    assert (batch.status, counts(batch)) == (BatchState.FAILED, (2, 0, 2))
    assert batch.errors is not None
    [error] = batch.errors.data
    assert (error.code, error.line, error.param) == ("invalid_request", 3, "temperature")
    assert [event.type for event in events(bench)] == ["batch.failed"]


def test_refused_lines_that_are_told_count_as_failed(bench: Any, client: Client) -> None:
    told: list[tuple[int, str | None]] = []
    some = [*lines(2), {"prompt": ""}, {"prompt": "x", "idempotency_key": "mine"}, *lines(1)]
    batch = client.create_batch(some, on_rejected=lambda i, error: told.append((i, error.param)))
    assert told == [(2, "prompt"), (3, "idempotency_key")]
    assert counts(batch) == (5, 0, 2)
    for job_id in ids_of(bench, batch.id):
        end(bench.store, job_id)
    assert counts(client.batch(batch.id)) == (5, 3, 2)
    indexes = [(entry.index, entry.custom_id) for entry in client.batch_results(batch.id)]
    assert indexes == [(0, "c0"), (1, "c1"), (4, "c0")]


def test_results_come_in_the_order_of_the_input(bench: Any, client: Client) -> None:
    batch = client.create_batch([*lines(3), {"messages": [{"role": "user", "content": "x"}]}])
    for job_id in reversed(ids_of(bench, batch.id)):
        end(bench.store, job_id)
    entries = list(client.batch_results(batch.id, timeout_s=5))
    assert [entry.job.result().text for entry in entries] == [
        f"about {job_id}" for job_id in ids_of(bench, batch.id)
    ]
    assert [entry.endpoint for entry in entries][2:] == ["/v1/completions", "/v1/chat/completions"]
    assert client.batches()[0].status is BatchState.COMPLETED


def test_results_that_do_not_come_time_out(bench: Any, client: Client) -> None:
    batch = client.create_batch(lines(1))
    with pytest.raises(ResultTimeout):
        list(client.batch_results(batch.id, timeout_s=0))
    for ask in (client.batch, client.cancel_batch, lambda i: list(client.batch_results(i))):
        with pytest.raises(UnknownBatch):
            ask("batch_nobody")


def test_an_interrupted_batch_goes_on_under_its_key(bench: Any, client: Client) -> None:
    def torn() -> Iterator[dict[str, Any]]:
        yield from lines(600)
        raise EOFError("the disk went away")

    options = {"idempotency_key": "nightly", "metadata": {"a": "b"}}
    with pytest.raises(EOFError):
        client.create_batch(torn(), **options)
    [batch] = client.batches()
    assert (batch.status, counts(batch)) == (BatchState.VALIDATING, (500, 0, 0))
    before = ids_of(bench, batch.id)
    for _ in range(2):  # the second call finds all of it
        batch = client.create_batch(lines(700), **options)
        assert (batch.status, counts(batch)) == (BatchState.IN_PROGRESS, (700, 0, 0))
    assert ids_of(bench, batch.id)[:500] == before
    assert bench.store.counts().totals["submitted"] == 700
    for other, metadata in ((lines(701), "b"), (lines(3), "b"), (lines(700), "c")):
        with pytest.raises(JobRejected) as refused:
            client.create_batch(other, idempotency_key="nightly", metadata={"a": metadata})
        assert isinstance(refused.value, IdempotencyConflict | BatchClosed)
    with pytest.raises(IdempotencyConflict, match="line 1 of batch"):
        client.create_batch(lines(700, max_tokens=3), **options)
    assert client.batch(batch.id).status is BatchState.IN_PROGRESS


def test_an_input_that_breaks_fails_a_batch_without_a_key(bench: Any, client: Client) -> None:
    def torn() -> Iterator[dict[str, Any]]:
        yield from lines(600)
        raise EOFError("a secret prompt")

    with pytest.raises(EOFError):
        client.create_batch(torn())
    [batch] = client.batches()
    assert (batch.status, counts(batch)) == (BatchState.FAILED, (500, 0, 500))
    assert batch.errors is not None
    assert batch.errors.data[0].message == "the input ended by EOFError"


def test_cancelling_ends_when_the_running_jobs_have_stopped(bench: Any, client: Client) -> None:
    batch = client.create_batch(lines(4), webhook=HOOK)
    ids = ids_of(bench, batch.id)
    end(bench.store, ids[0])
    running = bench.claim(ids[1])
    batch = client.cancel_batch(batch.id)
    assert (batch.status, counts(batch)) == (BatchState.CANCELLING, (4, 1, 2))
    assert events(bench) == []
    complete(bench.store, ids[1], running.fence, JobState.CANCELLED)
    batch = client.cancel_batch(batch.id)
    assert (batch.status, counts(batch)) == (BatchState.CANCELLED, (4, 1, 3))
    assert (batch.cancelling_at or 0) <= (batch.cancelled_at or 0)
    assert [event.type for event in events(bench)] == ["batch.cancelled"]


def test_a_batch_cancelled_while_it_takes_lines_takes_no_more(bench: Any, client: Client) -> None:
    def interrupted() -> Iterator[dict[str, Any]]:
        yield from lines(500)
        client.cancel_batch(client.batches()[0].id)
        yield from lines(2)

    with pytest.raises(BatchClosed) as closed:
        client.create_batch(interrupted())
    assert closed.value.code == "batch_cancelled"
    [batch] = client.batches()
    assert (batch.status, counts(batch)) == (BatchState.CANCELLED, (500, 0, 500))


def test_the_sweep_goes_on_with_a_cancel_whose_client_died(bench: Any, client: Client) -> None:
    batch = client.create_batch(lines(5), webhook=HOOK)
    running = bench.claim(ids_of(bench, batch.id)[3])
    bench.store.run(batch_calls.cancel(batch.id))  # and no more: the client is dead
    swept = [bench.store.sweep(limit=2).cancelled for _ in range(4)]
    assert swept == [2, 1, 1, 0]
    assert bench.store.load(running.job_id).cancel_requested
    assert client.batch(batch.id).status is BatchState.CANCELLING
    bench.store.release([Held(running.job_id, running.fence)], cause=ReleaseCause.DRAIN)
    assert counts(client.batch(batch.id)) == (5, 0, 5)
    assert [event.type for event in events(bench)] == ["batch.cancelled"]


def pass_deadline(bench: Any, batch_id: str) -> None:
    """Let a batch's time be over, and that of its jobs with it."""
    bench.redis.hset(keys.batch(batch_id), "deadline_at_ms", 1)
    bench.redis.zadd(keys.BATCHES_DUE, {batch_id: 1}, xx=True)
    for job_id in ids_of(bench, batch_id):
        if bench.state(job_id) == "queued":
            bench.pass_deadline(job_id)


def test_a_batch_expires_with_the_jobs_that_were_too_late(bench: Any, client: Client) -> None:
    batch = client.create_batch(lines(3), webhook=HOOK, ttl_s=3600)
    assert (batch.expires_at or 0) - batch.created_at == 3600
    ids = ids_of(bench, batch.id)
    end(bench.store, ids[0])
    assert bench.store.load(ids[1]).deadline_at_ms // 1000 == batch.expires_at
    pass_deadline(bench, batch.id)
    assert bench.store.sweep().expired == 2
    batch = client.batch(batch.id)
    assert (batch.status, counts(batch)) == (BatchState.EXPIRED, (3, 1, 2))
    assert [event.type for event in events(bench)] == ["batch.expired"]


def test_late_jobs_that_are_retried_in_time_do_not_leave_the_batch_expired(
    bench: Any, client: Client
) -> None:
    batch = client.create_batch(lines(3), ttl_s=3600)
    first, *late = ids_of(bench, batch.id)
    running = bench.claim(first)
    pass_deadline(bench, batch.id)
    assert bench.store.sweep().expired == 2
    for job_id in late:
        client.retry(job_id)
    assert counts(client.batch(batch.id)) == (3, 0, 0)
    for job_id in late:
        end(bench.store, job_id)
    complete(bench.store, first, running.fence, JobState.COMPLETED)
    assert client.batch(batch.id).status is BatchState.COMPLETED


def test_one_late_job_that_is_not_retried_expires_the_batch(bench: Any, client: Client) -> None:
    batch = client.create_batch(lines(3), ttl_s=3600)
    first, second, _ = ids_of(bench, batch.id)
    running = bench.claim(first)
    pass_deadline(bench, batch.id)
    bench.store.sweep()
    client.retry(second)
    end(bench.store, second)
    complete(bench.store, first, running.fence, JobState.COMPLETED)
    assert client.batch(batch.id).status is BatchState.EXPIRED
    assert counts(client.batch(batch.id)) == (3, 2, 1)


def test_a_job_that_is_late_by_its_own_deadline_does_not_expire_the_batch(
    bench: Any, client: Client
) -> None:
    batch = client.create_batch(lines(1, ttl_s=5), ttl_s=3600)
    bench.pass_deadline(ids_of(bench, batch.id)[0])
    assert bench.store.sweep().expired == 1
    assert client.batch(batch.id).status is BatchState.COMPLETED
    assert counts(client.batch(batch.id)) == (1, 0, 1)


@pytest.mark.parametrize("has_deadline", [True, False])
def test_a_batch_whose_producer_never_came_back_ends(
    bench: Any, client: Client, has_deadline: bool
) -> None:
    def torn() -> Iterator[dict[str, Any]]:
        yield from lines(501)
        raise EOFError

    ttl = {"ttl_s": 60.0} if has_deadline else {}
    with pytest.raises(EOFError):
        client.create_batch(torn(), webhook=HOOK, idempotency_key="k", **ttl)
    [batch] = client.batches()
    for job_id in ids_of(bench, batch.id)[1:]:
        end(bench.store, job_id)
    if has_deadline:
        pass_deadline(bench, batch.id)
    bench.redis.zadd(keys.BATCHES_DUE, {batch.id: 1}, xx=True)
    for _ in range(3):
        bench.store.sweep()
    batch = client.batch(batch.id)
    assert counts(batch) == (500, 499, 1)
    wanted = BatchState.EXPIRED if has_deadline else BatchState.FAILED
    assert batch.status is wanted
    assert [event.type for event in events(bench)] == [f"batch.{wanted}"]
    with pytest.raises(BatchClosed):
        client.create_batch(lines(501), webhook=HOOK, idempotency_key="k", **ttl)


def test_forged_keys_of_a_batch_stop_neither_its_jobs_nor_the_sweep(
    bench: Any, client: Client
) -> None:
    first, second = (client.create_batch(lines(1)) for _ in range(2))
    ids = [ids_of(bench, batch.id)[0] for batch in (first, second)]
    bench.store.run(batch_calls.cancel(second.id))
    for key in (keys.batch(first.id), keys.batch_jobs(second.id)):
        bench.redis.set(key, "not ours")
    end(bench.store, ids[0])
    end(bench.store, ids[1])
    bench.redis.zadd(keys.BATCHES_DUE, {first.id: 1, second.id: 1})
    bench.store.sweep()
    assert bench.state(ids[0]) == bench.state(ids[1]) == "completed"
    bench.redis.delete(keys.batch(first.id), keys.batch_jobs(second.id))


def test_one_sweep_cancels_no_more_jobs_of_many_batches_than_its_limit(
    bench: Any, client: Client
) -> None:
    batches = [client.create_batch(lines(2)) for _ in range(3)]
    for batch in batches:
        bench.store.run(batch_calls.cancel(batch.id))

    assert [bench.store.sweep(limit=2).cancelled for _ in range(4)] == [2, 2, 2, 0]
    assert {client.batch(batch.id).status for batch in batches} == {BatchState.CANCELLED}


def test_the_index_forgets_batches_whose_record_is_gone(bench: Any, client: Client) -> None:
    batch = client.create_batch([])
    assert [found.id for found in client.batches()] == [batch.id]
    bench.redis.delete(keys.batch(batch.id))
    bench.redis.zadd(keys.BATCHES_DUE, {batch.id: 1})
    bench.store.sweep()
    assert bench.redis.exists(keys.BATCHES, keys.BATCHES_DUE) == 0


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"webhook": "ftp://example.com/"}, "webhook"),
        ({"webhook": "https://127.0.0.1/"}, "webhook"),
        ({"webhook": HOOK, "webhook_events_filter": ["started"]}, "webhook_events_filter.0"),
        ({"webhook": HOOK, "webhook_events_filter": []}, "webhook_events_filter"),
        ({"webhook_secret": "whsec_abc"}, "webhook_secret"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"ttl_s": 0.0}, "ttl_s"),
        ({"max_tokens": 3}, "max_tokens"),
    ],
)
def test_wrong_fields_are_refused_by_name(
    client: Client, fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(JobRejected) as refused:
        client.create_batch(lines(1), **fields)
    assert refused.value.param == param
    assert client.batches() == []


def test_only_the_events_that_are_asked_for_are_sent(bench: Any, client: Client) -> None:
    chosen = {"webhook": HOOK, "webhook_events_filter": ["failed", "cancelled"]}
    client.create_batch([], **chosen)
    assert events(bench) == []
    client.cancel_batch(client.create_batch(lines(1), **chosen).id)
    assert [event.type for event in events(bench)] == ["batch.cancelled"]


def test_a_full_queue_only_slows_the_batch_down(redis_url: str, bench: Any) -> None:
    """Jobs end only when the queue is as full as it may be."""

    def make_room() -> None:
        store = JobStore.from_url(redis_url)
        deadline = time.monotonic() + 30
        for _ in range(8 - 3):
            while len(waiting := store.client.zrange(keys.queued(QUEUE), 0, -1)) < 3:
                assert time.monotonic() < deadline
            end(store, waiting[0].decode())
        store.close()

    with Client(redis_url, settings=ProducerSettings(max_queue_depth=3)) as client:
        worker = threading.Thread(target=make_room, daemon=True)
        worker.start()
        batch = client.create_batch(lines(8))
        worker.join(30)
        assert counts(client.batch(batch.id)) == (8, 5, 0)


def test_the_line_of_a_result_was_created_when_its_job_ended(bench: Any, client: Client) -> None:
    batch = client.create_batch(lines(1))
    [job_id] = ids_of(bench, batch.id)
    end(bench.store, job_id)
    bench.redis.hset(keys.job(job_id), "finished_at_ms", 1_700_000_000_999)  # long ago
    [entry] = client.batch_results(batch.id)
    line = line_of("r", "c", LineKind.TEXT, entry.job)
    assert line["response"]["body"]["created"] == 1_700_000_000


def test_the_asyncio_client_has_the_same_verbs(bench: Any, redis_url: str) -> None:
    async def run() -> None:
        async with AsyncClient(redis_url) as client:
            batch = await client.create_batch(lines(3), webhook=HOOK)
            for job_id in ids_of(bench, batch.id)[:2]:
                end(bench.store, job_id)
            with pytest.raises(ResultTimeout):
                [entry async for entry in client.batch_results(batch.id, timeout_s=0)]
            assert (await client.cancel_batch(batch.id)).status is BatchState.CANCELLED
            entries = [entry async for entry in client.batch_results(batch.id)]
            assert [(entry.index, entry.job.state) for entry in entries] == [
                (0, JobState.COMPLETED),
                (1, JobState.COMPLETED),
                (2, JobState.CANCELLED),
            ]
            assert [found.id for found in await client.batches()] == [batch.id]
            with pytest.raises(JobRejected):
                await client.create_batch([{"prompt": ""}])
            failed = (await client.batches(1))[0]
            assert (await client.batch(failed.id)).status is BatchState.FAILED

    asyncio.run(asyncio.wait_for(run(), timeout=60))


def test_counts_equal_a_recount_after_anything(bench: Any, client: Client) -> None:
    """Random ends, repeats, lost leases and cancels of two batches and of jobs in none."""
    rng = random.Random(5)
    batches = [client.create_batch(lines(20), webhook=HOOK).id for _ in range(2)]
    loose = [client.submit(prompt="x").id for _ in range(5)]
    ids = [*ids_of(bench, batches[0]), *ids_of(bench, batches[1]), *loose]
    fences: dict[str, int] = {}
    for _ in range(400):
        job_id = rng.choice(ids)
        match rng.randrange(6):
            case 0 | 1:
                claim = bench.store.claim(job_id, owner="w", lease_ms=60_000, identity="i")
                if isinstance(claim, Claim):
                    fences[job_id] = claim.fence
            case 2 | 3:
                state = rng.choice([JobState.COMPLETED, JobState.FAILED, JobState.EXPIRED])
                complete(bench.store, job_id, fences.get(job_id, 1) - rng.randrange(2), state)
            case 4 if rng.random() < 0.3:
                bench.store.cancel(job_id)
            case 5:
                bench.redis.zadd(keys.LEASES, {job_id: 1}, xx=True)
                bench.store.sweep()
    for batch_id in batches:
        states = [bench.state(job_id) for job_id in ids_of(bench, batch_id)]
        completed = states.count("completed")
        ended = completed + sum(states.count(s) for s in ("failed", "cancelled", "expired"))
        assert 0 < completed < ended
        assert counts(client.batch(batch_id)) == (20, completed, ended - completed)
