"""Ends that Redis never takes: they fail, and hold back no other job."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator

import pytest
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls.new_job import NewJob
from batchmill.producer.protocol.replies import Claim, JobState
from batchmill.producer.protocol.used_tokens import UsedTokens
from batchmill.producer.store.job_store import JobStore
from batchmill.worker.engine_host.messages import AddRequest
from batchmill.worker.jobs.active_job import ActiveJob
from batchmill.worker.jobs.end_writer import EndWriter
from batchmill.worker.jobs.job_end import JobEnd
from batchmill.worker.jobs.outcome import Outcome

from ...conftest import RedisServer
from ..celery_tasks import a_task
from ..conftest import Mill, stored_error

MIB = 1 << 20


@pytest.fixture
def small_server() -> Iterator[RedisServer]:
    """A server that closes a connection that sends an argument over 1 MiB, as any does at 512."""
    server = RedisServer("--proto-max-bulk-len", "1mb")
    server.start()
    yield server
    server.close()


@pytest.fixture
def store(small_server: RedisServer) -> Iterator[JobStore]:
    # As a worker connects: it has its own schedule of retries.
    client = Redis.from_url(small_server.url, retry=Retry(NoBackoff(), 0), socket_timeout=5)
    yield JobStore(client)
    client.close()


def claimed_job(store: JobStore, job_id: str) -> ActiveJob:
    queue = keys.queue_name("demo", "normal")
    store.submit(NewJob(job_id, "demo", queue, '{"prompt":"x"}', 600_000))
    claim = store.claim(job_id, owner="w1", lease_ms=60_000, identity="stub")
    assert isinstance(claim, Claim)
    return ActiveJob(claim, AddRequest(f"{job_id}.1", "x", None, {}), a_task(job_id))


def completed_end(num_bytes: int) -> JobEnd:
    result = json.dumps({"text": "x" * num_bytes})
    outcome = Outcome(JobState.COMPLETED, result=result, num_output_tokens=1)
    return JobEnd(JobState.COMPLETED, result, None, UsedTokens(completion=1), outcome)


def write(writer: EndWriter, num_calls: int) -> None:
    for _ in range(num_calls):
        with contextlib.suppress(RedisError):
            writer.write()


def test_an_end_that_redis_never_takes_fails_and_the_others_are_written(store: JobStore) -> None:
    settled: dict[str, Outcome] = {}
    writer = EndWriter(store, lambda job, outcome: settled.update({job.claim.job_id: outcome}))
    for name, num_bytes in (("good-1", 10), ("bad", 2 * MIB), ("good-2", 10), ("good-3", 10)):
        writer.add(claimed_job(store, name), completed_end(num_bytes))

    write(writer, 3)
    states = {name: store.state(name) for name in ("good-1", "good-2", "good-3")}
    assert states == dict.fromkeys(states, JobState.COMPLETED)
    assert "bad" not in settled

    write(writer, 3)
    record = store.load("bad")
    assert record is not None
    assert record.state is JobState.FAILED
    error = stored_error(record)
    assert (error["code"], error["retryable"]) == ("result_refused", False)
    assert f"{2 * MIB + 12} bytes" in error["message"]
    assert "BATCHMILL_MAX_RESULT_BYTES" in error["message"]
    assert settled["bad"].error is not None
    writer.write()  # nothing is left


def test_no_end_is_given_up_while_redis_is_away(small_server: RedisServer, store: JobStore) -> None:
    settled: list[str] = []
    writer = EndWriter(store, lambda job, outcome: settled.append(job.claim.job_id))
    job = claimed_job(store, "j")
    small_server.kill()
    writer.add(job, completed_end(10))
    write(writer, 12)
    assert settled == []
    small_server.start()
    writer.write()  # the record is gone with the server's memory, and the end was not replaced
    assert settled == ["j"]
    assert store.counts().dead_letters == 0


def test_a_result_over_the_limit_fails_its_job_with_the_limit_and_the_remedy(mill: Mill) -> None:
    mill.start_worker(max_result_bytes=4096)
    large, small = mill.submit(max_tokens=1000), mill.submit(max_tokens=10)

    failed, completed = mill.wait_ended(large, small)

    assert completed.state is JobState.COMPLETED
    assert (failed.state, failed.result) == (JobState.FAILED, None)
    error = stored_error(failed)
    assert (error["code"], error["retryable"]) == ("result_too_large", False)
    assert "limit of this worker is 4096" in error["message"]
    assert "raise BATCHMILL_MAX_RESULT_BYTES" in error["message"]
    assert len(mill.store.read_tokens(large)) == 1000
