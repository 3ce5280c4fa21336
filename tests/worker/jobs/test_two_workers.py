"""Two workers on one queue: repeated messages, and far more jobs than both can run."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from batchmill.producer import Client, QueueFull
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.pauses import PauseKind
from batchmill.producer.protocol.replies import JobState
from batchmill.producer.settings import ProducerSettings
from batchmill.producer.store.pauses import Pauses

from ...conftest import RedisServer
from ..announcements import QUEUE, announcement
from ..conftest import Mill

TENANTS = ("a", "b", "c")
MAX_WAITING = 24
NUM_JOBS = 240


@pytest.fixture(scope="module")
def pair(_session_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mill]:
    """A mill with two workers of four slots."""
    mill = Mill(_session_server.url, tmp_path_factory.mktemp("pair"))
    mill.store.client.flushall()
    for name in ("w1", "w2"):
        mill.start_worker(name, max_num_seqs=4, stub={"step_time_s": 0.005})
    yield mill
    mill.close()


def test_five_announcements_for_two_workers_make_one_run(pair: Mill) -> None:
    job_id = pair.submit("once", max_tokens=60)
    element = json.loads(announcement(job_id))
    for number in range(5):
        element["properties"]["delivery_tag"] = f"{job_id}.copy{number}"
        pair.store.client.lpush(QUEUE, json.dumps(element))

    (record,) = pair.wait_ended(job_id)
    pair.wait_for(lambda: pair.store.client.llen(QUEUE) == 0, "an empty queue")

    assert record.attempts == 1
    assert pair.computed(job_id) == list(range(60))


def test_an_overload_is_refused_and_starves_no_tenant(pair: Mill) -> None:
    settings = ProducerSettings(max_queued_jobs=MAX_WAITING)
    tenant_of: dict[str, str] = {}
    num_refused = most_waiting = 0
    before = memory_of(pair)
    pauses = Pauses(pair.store)
    pauses.pause(PauseKind.QUEUE, QUEUE)  # until more wait than may, however slow this process is
    with Client(pair.url, settings=settings) as client:
        while len(tenant_of) < NUM_JOBS:
            for tenant in TENANTS:
                try:
                    job = client.submit(prompt="x", tenant=tenant, max_tokens=6)
                except QueueFull:
                    num_refused += 1
                    pauses.resume(PauseKind.QUEUE, QUEUE)
                else:
                    tenant_of[job.id] = tenant
            most_waiting = max(most_waiting, pair.store.counts().queued)
        ends = [ended.id for ended in client.as_completed(tenant_of, timeout_s=60)]

    assert num_refused > 0  # more than both workers can run
    assert most_waiting <= MAX_WAITING
    assert len(set(ends)) == len(ends) == len(tenant_of)
    assert {pair.state(job_id) for job_id in ends} == {JobState.COMPLETED}
    shares = Counter(tenant_of[job_id] for job_id in ends[: len(ends) // 2])
    assert min(shares[tenant] for tenant in TENANTS) > len(ends) // 2 // 6
    assert pair.store.client.hget(keys.USAGE, "jobs") in (None, b"0")
    assert memory_of(pair) - before < 32 << 20


def memory_of(mill: Mill) -> int:
    """Return the resident memory of all workers in bytes."""
    pages = [
        int(Path(f"/proc/{worker.process.pid}/statm").read_text().split()[1])
        for worker in mill.workers
    ]
    return sum(pages) * 4096
