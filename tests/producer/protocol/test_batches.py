"""Batches: one state and exact counts for many jobs, however each of them ends."""

from __future__ import annotations

import asyncio
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
    Client,
    EtaUnknown,
    IdempotencyConflict,
    JobRejected,
    ProducerSettings,
    ProgressSummary,
    ResultTimeout,
    UnknownBatch,
)
from batchmill.producer.bulk.result_lines import ended_line
from batchmill.producer.job.document import GenerationJob
from batchmill.producer.job.line import BulkLine, LineKind
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.replies import Claim, JobState
from batchmill.producer.store.job_store import JobStore

from .batch_steps import HOOK, QUEUE, complete, counts, end, events, ids_of, lines


@pytest.fixture
def client(redis_url: str) -> Iterator[Client]:
    with Client(redis_url) as client:
        yield client


def test_a_batch_ends_with_its_last_job_and_sends_one_event(bench: Any, client: Client) -> None:
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
    """All stored jobs end before the batch knows its number of lines."""

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
    client.retry(second)  # too late: the batch has ended
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


def test_refused_lines_that_are_reported_count_as_failed(bench: Any, client: Client) -> None:
    reported: list[tuple[int, str | None]] = []
    some = [*lines(2), {"prompt": ""}, {"prompt": "x", "idempotency_key": "mine"}, *lines(1)]
    some[3:3] = [{"prompt": "x", "custom_id": "\ud83d"}]
    batch = client.create_batch(
        some, on_rejected=lambda i, error: reported.append((i, error.param))
    )
    assert reported == [(2, "prompt"), (3, "custom_id"), (4, "idempotency_key")]
    assert counts(batch) == (6, 0, 3)
    for job_id in ids_of(bench, batch.id):
        end(bench.store, job_id)
    assert counts(client.batch(batch.id)) == (6, 3, 3)
    indexes = [(entry.index, entry.custom_id) for entry in client.batch_results(batch.id)]
    assert indexes == [(0, "c0"), (1, "c1"), (5, "c0")]


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
    batch = client.create_batch(lines(2))
    end(bench.store, ids_of(bench, batch.id)[0])
    with pytest.raises(ResultTimeout) as late:
        list(client.batch_results(batch.id, timeout_s=0))
    assert f"1 of the 2 lines of batch {batch.id} have ended after 0 s" in str(late.value)
    assert "no worker" in str(late.value)
    assert isinstance(late.value.progress, ProgressSummary)
    assert late.value.progress.eta_unknown is EtaUnknown.NO_WORKER
    for ask in (client.batch, client.cancel_batch, lambda i: list(client.batch_results(i))):
        with pytest.raises(UnknownBatch):
            ask("batch_unknown")


def test_an_interrupted_batch_continues_under_its_key(bench: Any, client: Client) -> None:
    def torn() -> Iterator[dict[str, Any]]:
        yield from lines(600)
        raise EOFError("the disk went away")

    options: dict[str, Any] = {"idempotency_key": "nightly", "metadata": {"a": "b"}}
    with pytest.raises(EOFError):
        client.create_batch(torn(), **options)
    [batch] = client.batches()
    assert (batch.status, counts(batch)) == (BatchState.VALIDATING, (500, 0, 0))
    before = ids_of(bench, batch.id)
    for _ in range(2):  # the second call finds every line
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


def of_tenant(tenant: str) -> list[Any]:
    """Return the same lines in each form that a caller can give, owned by a tenant."""
    fields = [{**line, "tenant": tenant} for line in lines(2)]
    jobs = [GenerationJob(prompt=line["prompt"], tenant=tenant) for line in fields]
    read = [BulkLine(i, f"c{i}", LineKind.TEXT, job) for i, job in enumerate(jobs, 1)]
    return [fields, jobs, read]


def owners(bench: Any, batch_id: str) -> list[bytes]:
    return [bench.redis.hget(keys.job(job_id), "tenant") for job_id in ids_of(bench, batch_id)]


@pytest.mark.parametrize("form", range(3), ids=["mappings", "jobs", "lines of a file"])
def test_each_tenant_has_its_own_keys(bench: Any, client: Client, form: int) -> None:
    batches = {
        tenant: client.create_batch(of_tenant(tenant)[form], idempotency_key="nightly")
        for tenant in ("acme", "umbrella", "default")
    }
    assert len({batch.id for batch in batches.values()}) == 3
    for tenant, batch in batches.items():
        assert owners(bench, batch.id) == [tenant.encode()] * 2
        again = client.create_batch(of_tenant(tenant)[form], idempotency_key="nightly")
        assert (again.id, counts(again)) == (batch.id, (2, 0, 0))


def test_the_tenant_of_a_batch_owns_its_key_and_its_lines(bench: Any, client: Client) -> None:
    given = [*lines(1), {**lines(2)[1], "tenant": "guest"}]
    first = client.create_batch(given, idempotency_key="nightly", tenant="acme")
    other = client.create_batch(given, idempotency_key="nightly", tenant="umbrella")
    assert first.id != other.id
    assert owners(bench, first.id) == [b"acme", b"guest"]
    assert client.create_batch(given, idempotency_key="nightly", tenant="acme").id == first.id


def test_an_input_that_breaks_fails_a_batch_without_a_key(bench: Any, client: Client) -> None:
    def torn() -> Iterator[dict[str, Any]]:
        yield from lines(600)
        raise EOFError("a secret prompt")

    with pytest.raises(EOFError):
        client.create_batch(torn())
    [batch] = client.batches()
    assert (batch.status, counts(batch)) == (BatchState.FAILED, (500, 0, 500))
    assert batch.errors is not None
    assert batch.errors.data[0].message == "the input failed with EOFError"


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
    chosen: dict[str, Any] = {"webhook": HOOK, "webhook_events_filter": ["failed", "cancelled"]}
    client.create_batch([], **chosen)
    assert events(bench) == []
    client.cancel_batch(client.create_batch(lines(1), **chosen).id)
    assert [event.type for event in events(bench)] == ["batch.cancelled"]


def test_a_full_queue_only_slows_the_batch_down(redis_url: str, bench: Any) -> None:
    """Jobs end only while the queue is full."""

    def make_room() -> None:
        store = JobStore.from_url(redis_url)
        deadline = time.monotonic() + 60
        for _ in range(8 - 3):
            while store.client.zcard(keys.queued(QUEUE)) < 3:
                assert time.monotonic() < deadline
            first: Any = store.client.zrange(keys.queued(QUEUE), 0, 0)[0]
            end(store, first.decode())
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
    line = ended_line("r", "c", LineKind.TEXT, entry.job)
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
            same = [
                await client.create_batch(lines(2, tenant="acme"), idempotency_key="nightly")
                for _ in range(2)
            ]
            assert same[0] == same[1]
            other = await client.create_batch(lines(2), idempotency_key="nightly")
            assert other.id != same[0].id

    asyncio.run(asyncio.wait_for(run(), timeout=60))


def test_counts_equal_a_recount_after_anything(bench: Any, client: Client) -> None:
    """Random ends, repeats, lost leases and cancels of two batches and of jobs outside a batch."""
    rng = random.Random(5)
    batches = [client.create_batch(lines(20), webhook=HOOK).id for _ in range(2)]
    loose = [client.submit(prompt="x").id for _ in range(5)]
    ids = [*ids_of(bench, batches[0]), *ids_of(bench, batches[1]), *loose]
    fences: dict[str, list[str]] = {job_id: ["0.none"] for job_id in ids}
    for _ in range(400):
        job_id = rng.choice(ids)
        match rng.randrange(6):
            case 0 | 1:
                claim = bench.store.claim(job_id, owner="w", lease_ms=60_000, identity="i")
                if isinstance(claim, Claim):
                    fences[job_id].append(claim.fence)
            case 2 | 3:
                state = rng.choice([JobState.COMPLETED, JobState.FAILED, JobState.EXPIRED])
                complete(bench.store, job_id, rng.choice(fences[job_id][-2:]), state)
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
