"""Jobs that wait for a slow object store: their leases live, and no further job is claimed."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest

from batchmill.producer.payloads.object_store import ObjectStore
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls.new_job import NewJob
from batchmill.producer.protocol.replies import Claim, JobState
from batchmill.producer.store.job_store import JobStore
from batchmill.worker.engine_host.messages import AddRequest
from batchmill.worker.jobs import object_threads
from batchmill.worker.jobs.active_job import ActiveJob
from batchmill.worker.jobs.active_jobs import ActiveJobs
from batchmill.worker.jobs.job_end import JobEnd
from batchmill.worker.jobs.lease_renewal import LeaseRenewal
from batchmill.worker.jobs.object_threads import NUM_THREADS, ObjectThreads
from batchmill.worker.jobs.outcome import Outcome
from batchmill.worker.metrics.worker_meter import JobMeter

from ..celery_tasks import a_task

NUM_JOBS = 2 * NUM_THREADS
RESULT = "x" * 2000


class SlowSystem:
    """A file system whose writes wait for an event, and its reads for another."""

    def __init__(self, system: Any) -> None:
        self._system = system
        self.may_write = threading.Event()
        self.may_read = threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._system, name)

    def open(self, path: str, mode: str) -> Any:
        (self.may_write if mode == "wb" else self.may_read).wait(60)
        return self._system.open(path, mode)


@pytest.fixture
def store(redis_url: str, tmp_path: Path) -> JobStore:
    objects = ObjectStore(str(tmp_path), threshold_bytes=256, timeout_s=60.0)
    objects._system = SlowSystem(objects._system)
    return JobStore(JobStore.from_url(redis_url).client, objects=objects)


def claimed_job(store: JobStore, job_id: str, document: str = '{"prompt":"x"}') -> ActiveJob:
    queue = keys.queue_name("demo", "normal")
    store.submit(NewJob(job_id, "demo", queue, document, 600_000))
    claim = store.claim(job_id, owner="w1", lease_ms=60_000, identity="stub")
    assert isinstance(claim, Claim)
    return ActiveJob(claim, AddRequest(f"{job_id}.1", "x", None, {}), a_task(job_id))


def is_stuck(answer: bool) -> Any:
    return lambda: answer


@pytest.mark.parametrize("engine_is_stuck", [False, True])
def test_leases_live_while_results_wait(
    store: JobStore, monkeypatch: pytest.MonkeyPatch, engine_is_stuck: bool
) -> None:
    monkeypatch.setattr(object_threads, "MAX_WAITING_RESULTS", NUM_JOBS)
    has_room, written = threading.Event(), []
    threads = ObjectThreads(store, JobMeter(), on_room=has_room.set)
    jobs = [claimed_job(store, f"j{number}") for number in range(NUM_JOBS)]
    outcome = Outcome(JobState.COMPLETED, result=RESULT)
    end = JobEnd(JobState.COMPLETED, RESULT, None, None, outcome)
    for job in jobs:
        assert not threads.is_full
        threads.write_result(job, end, lambda job, end: written.append((job, end)))
    assert threads.is_full
    assert threads.jobs_at_store() == jobs
    for job in jobs:  # as if a third of the lease had passed
        store.client.zadd(keys.LEASES, {job.claim.job_id: 1})

    renewal = LeaseRenewal(
        store,
        ActiveJobs(lambda message: None),
        lease_s=60.0,
        is_engine_stuck=is_stuck(engine_is_stuck),
        waiting_jobs=threads.jobs_at_store,
    )
    renewal._renewed_at = 0.0
    assert renewal.renew_if_due() == []
    ends = [store.client.zscore(keys.LEASES, job.claim.job_id) or 0 for job in jobs]
    assert min(ends) > time.time() * 1000

    store.objects._system.may_write.set()  # type: ignore[union-attr]
    deadline = time.monotonic() + 60
    while threads.jobs_at_store():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert has_room.is_set()
    assert {job for job, _ in written} == set(jobs)
    assert all(end.result_object is not None for _, end in written)


def test_a_job_is_at_the_store_until_its_document_is_read(store: JobStore) -> None:
    system: Any = store.objects._system  # type: ignore[union-attr]
    system.may_write.set()
    document = '{"prompt":"' + "x" * 2000 + '"}'
    job = claimed_job(store, "j", document)
    threads, has_read, found = ObjectThreads(store, JobMeter()), threading.Event(), []

    def take(value: Any) -> None:
        found.append((value, threads.jobs_at_store()))
        has_read.set()

    threads.read_document(job, take)
    assert threads.jobs_at_store() == [job]
    system.may_read.set()
    assert has_read.wait(60)
    assert found == [(document.encode(), [])]
