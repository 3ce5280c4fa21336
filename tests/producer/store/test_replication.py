"""Clients that are told that a job is accepted only when replicas have it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from batchmill.producer import AsyncClient, Client, JobRejected, NotReplicated, ProducerSettings
from batchmill.producer.protocol.replies import JobState
from batchmill.producer.store.job_store import JobStore

from ...support.replicas import ReplicatedServer

FAST = ProducerSettings(broker_min_replicas=1, broker_replica_timeout_s=0.2)


@pytest.fixture(scope="module")
def replicated() -> Iterator[ReplicatedServer]:
    servers = ReplicatedServer()
    yield servers
    servers.close()


@pytest.fixture
def servers(replicated: ReplicatedServer) -> Iterator[ReplicatedServer]:
    store = JobStore.from_url(replicated.primary.url)
    store.client.flushall()
    store.client.script_flush()  # as after a restart: no script is known
    store.close()
    replicated.wait_in_step()
    yield replicated
    replicated.thaw()


def test_what_is_accepted_is_on_the_replica(servers: ReplicatedServer) -> None:
    with Client(servers.primary.url, settings=FAST) as client:
        ids = [client.submit(prompt="one").id]
        ids += [job.id for job in client.submit_many(["more"] * 3)]
        batch = client.create_batch([{"prompt": "line"}])
    replica = JobStore.from_url(servers.replica.url)
    assert [replica.state(job_id) for job_id in ids] == [JobState.QUEUED] * 4
    assert replica.client.hget(f"batchmill:batch:{batch.id}", "state") == b"in_progress"
    replica.close()


ACTIONS: dict[str, Callable[[Client], Any]] = {
    "submit": lambda client: client.submit(prompt="x", idempotency_key="k"),
    "submit_many": lambda client: client.submit_many([{"prompt": "x", "idempotency_key": "k"}]),
    "create_batch": lambda client: client.create_batch([{"prompt": "x"}], idempotency_key="b"),
}


@pytest.mark.parametrize("name", ACTIONS)
def test_a_silent_replica_is_an_error_that_says_what_is_stored(
    servers: ReplicatedServer, name: str
) -> None:
    with Client(servers.primary.url, settings=FAST) as client:
        servers.freeze()
        for _ in range(2):  # also if the repeated call writes nothing
            with pytest.raises(
                NotReplicated, match=r"stored, but 0 of 1 replicas .* 0\.2 s .*MIN_REPLICAS"
            ) as raised:
                ACTIONS[name](client)
        if name != "create_batch":
            [job_id] = raised.value.job_ids
            assert client.status(job_id).state is JobState.QUEUED
        servers.thaw()
        ACTIONS[name](client)
        assert len(client.list().jobs) == 1


def test_a_job_that_was_rejected_waits_for_no_replica(servers: ReplicatedServer) -> None:
    settings = FAST.model_copy(update={"max_queued_jobs": 1})
    with Client(servers.primary.url, settings=settings) as client:
        client.submit(prompt="first")
        servers.freeze()
        with pytest.raises(JobRejected, match="BATCHMILL_MAX_QUEUED_JOBS"):
            client.submit(prompt="second")


def test_a_retry_waits_for_the_replica_too(servers: ReplicatedServer) -> None:
    with Client(servers.primary.url, settings=FAST) as client:
        job = client.submit(prompt="x")
        job.cancel()
        servers.freeze()
        with pytest.raises(NotReplicated):
            client.retry(job.id)
        assert job.status().state is JobState.QUEUED


def test_the_asyncio_client_takes_the_number_as_an_argument(servers: ReplicatedServer) -> None:
    async def submit(min_replicas: int) -> JobState:
        async with AsyncClient(servers.primary.url, min_replicas=min_replicas) as client:
            job = await client.submit(prompt="x")
            return (await job.status()).state

    assert asyncio.run(submit(1)) is JobState.QUEUED
    with pytest.raises(NotReplicated, match="1 of 2 replicas"):
        asyncio.run(submit(2))
    servers.freeze()
    assert asyncio.run(submit(0)) is JobState.QUEUED


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"min_replicas": -1}, "min_replicas is -1; it must be 0 or more"),
        ({"min_replicas": 1, "timeout_s": 1.5}, "at most half of the 1.5 s"),
    ],
)
def test_a_wait_that_cannot_be_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Client("redis://localhost:1", **arguments)


def test_a_wait_longer_than_a_call_is_refused_in_the_settings() -> None:
    with pytest.raises(ValueError, match="at most half of the 10 s"):
        ProducerSettings(broker_min_replicas=1, broker_replica_timeout_s=6)
