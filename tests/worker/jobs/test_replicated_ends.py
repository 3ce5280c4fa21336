"""Ends that are settled only when replicas have them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from batchmill.producer.protocol.calls.new_job import NewJob
from batchmill.producer.protocol.keys import queue_name
from batchmill.producer.protocol.replies import Claim, JobState
from batchmill.producer.protocol.used_tokens import UsedTokens
from batchmill.producer.store.connection import connect
from batchmill.producer.store.job_store import JobStore
from batchmill.producer.store.replication import ReplicaWait
from batchmill.worker.engine_host.messages import AddRequest
from batchmill.worker.jobs.active_job import ActiveJob
from batchmill.worker.jobs.end_writer import EndWriter
from batchmill.worker.jobs.job_end import JobEnd
from batchmill.worker.jobs.outcome import Outcome
from batchmill.worker.settings import WorkerSettings

from ...support.older_state import OlderState
from ...support.replicas import ReplicatedServer
from ..celery_tasks import a_task

USED = UsedTokens(completion=1)
COMPLETED = JobEnd(JobState.COMPLETED, "{}", None, USED, Outcome(JobState.COMPLETED, result="{}"))


@pytest.fixture(scope="module")
def servers() -> Iterator[ReplicatedServer]:
    servers = ReplicatedServer()
    yield servers
    servers.close()


@pytest.fixture
def store(servers: ReplicatedServer) -> Iterator[JobStore]:
    wait = ReplicaWait(num_replicas=1, timeout_s=0.2)
    store = JobStore(connect(servers.primary.url), replica_wait=wait)
    store.client.flushall()
    servers.wait_in_step()
    yield store
    servers.thaw()
    store.close()


@pytest.fixture
def claim(store: JobStore) -> Callable[[str], ActiveJob]:
    def claim_job(job_id: str) -> ActiveJob:
        store.submit(NewJob(job_id, "demo", queue_name("demo", "normal"), "{}", 60_000))
        claim = store.claim(job_id, owner="w1", lease_ms=60_000, identity="stub")
        assert isinstance(claim, Claim)
        return ActiveJob(claim, AddRequest(f"{job_id}.1", "x", None, {}), a_task(job_id))

    return claim_job


def test_an_end_is_settled_when_the_replica_has_it(
    servers: ReplicatedServer, store: JobStore, claim: Callable[[str], ActiveJob]
) -> None:
    settled: list[str] = []
    writer = EndWriter(store, lambda job, outcome: settled.append(job.claim.job_id))
    for name in ("a", "b"):
        writer.add(claim(name), COMPLETED)
    servers.freeze()
    writer.write()
    assert (settled, store.state("a")) == ([], JobState.COMPLETED)
    servers.thaw()
    writer.write()
    assert settled == ["a", "b"]


def test_an_end_that_a_failover_loses_is_written_again(
    servers: ReplicatedServer, store: JobStore, claim: Callable[[str], ActiveJob]
) -> None:
    settled: list[Outcome] = []
    writer = EndWriter(store, lambda job, outcome: settled.append(outcome))
    writer.add(claim("a"), COMPLETED)
    before = OlderState(store.client)
    servers.freeze()
    writer.write()
    before.restore()
    assert store.state("a") is JobState.IN_PROGRESS
    servers.thaw()
    writer.write()
    assert (settled, store.state("a")) == ([COMPLETED.outcome], JobState.COMPLETED)


def test_a_replica_that_stays_away_does_not_hold_an_end_back_for_ever(
    servers: ReplicatedServer,
    store: JobStore,
    claim: Callable[[str], ActiveJob],
    capsys: pytest.CaptureFixture[str],
) -> None:
    settled: list[str] = []
    writer = EndWriter(store, lambda job, outcome: settled.append(job.claim.job_id))
    writer.add(claim("a"), COMPLETED)
    servers.freeze()
    for _ in range(2):
        writer.write()
        assert settled == []
    writer.write()
    assert settled == ["a"]
    printed = capsys.readouterr()
    assert "end_not_replicated" in printed.out + printed.err


def test_a_wait_that_would_cost_leases_is_refused() -> None:
    with pytest.raises(ValueError, match=r"at most a third of lease_s \(2\)"):
        WorkerSettings(lease_s=2, broker_min_replicas=1, broker_replica_timeout_s=1)
