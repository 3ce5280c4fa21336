"""The primary dies under load, and the promoted replica lacks its last writes."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from batchmill.producer import Client, OutputRestarted, UnknownJob
from batchmill.producer.protocol.outbox import DeliveryOutcome
from batchmill.producer.protocol.replies import JobState
from batchmill.worker.engine_host.stub_output import stub_text

from ...support.address import Address
from ...support.replicas import ReplicatedServer
from ..conftest import Mill, expected_tokens

NUM_JOBS = 60
HOOK = "https://example.com/hook"


@pytest.fixture
def servers() -> Iterator[ReplicatedServer]:
    servers = ReplicatedServer()
    yield servers
    servers.close()


@pytest.fixture
def address(servers: ReplicatedServer) -> Iterator[Address]:
    address = Address(servers.primary.folder, servers.primary.socket)
    yield address
    address.close()


@pytest.fixture
def mill(address: Address, tmp_path: Path) -> Iterator[Mill]:
    mill = Mill(address.url, tmp_path)
    yield mill
    mill.close()


def take_events(mill: Mill) -> Counter[str]:
    """Deliver all events, and return how often each was in the outbox."""
    seen: Counter[str] = Counter()
    while entries := mill.store.outbox_claim(owner="d", limit=64, lease_ms=60_000):
        for entry in entries:
            seen[entry.event_id.removeprefix("evt_")] += 1
            mill.store.outbox_settle(
                entry.event_id, fence=entry.fence, outcome=DeliveryOutcome.DELIVERED
            )
    return seen


class Reader(threading.Thread):
    """Reads along with one job, as a user does, over the failover."""

    def __init__(self, url: str, job_id: str) -> None:
        super().__init__(daemon=True)
        self._url, self._job_id = url, job_id
        self.token_ids: list[int] = []
        self.outcome = "unfinished"

    def run(self) -> None:
        try:
            with Client(self._url) as client:
                for piece in client.stream(self._job_id, timeout_s=60):
                    self.token_ids += piece.token_ids
            self.outcome = "completed"
        except (OutputRestarted, UnknownJob) as error:
            self.outcome = type(error).__name__


def test_what_survives_ends_once_and_is_right(
    servers: ReplicatedServer, address: Address, mill: Mill
) -> None:
    lengths = {
        mill.submit(f"early {i}", max_tokens=40 + 3 * i, webhook=HOOK): (i, "early")
        for i in range(NUM_JOBS)
    }
    workers = [
        mill.launch(name, stub={"step_time_s": 0.01}, max_num_seqs=8) for name in ("w1", "w2")
    ]
    readers = [Reader(mill.url, job_id) for job_id in list(lengths)[::10]]
    for reader in readers:
        reader.start()
    mill.wait_for(lambda: mill.store.counts().totals.get("completed", 0) >= 3, "some ends")

    servers.cut()
    ended_before = mill.store.counts().totals["completed"]
    late = [mill.submit(f"late {i}", max_tokens=20, webhook=HOOK) for i in range(10)]
    mill.wait_for(
        lambda: mill.store.counts().totals["completed"] >= ended_before + 5, "ends to be lost"
    )
    lost_ends = mill.store.counts().totals["completed"]
    servers.primary.kill()
    address.target = servers.replica.socket

    assert [mill.store.state(job_id) for job_id in late] == [None] * len(late)
    assert mill.store.counts().totals["completed"] < lost_ends
    mill.wait_ended(*lengths, timeout_s=60)
    for job_id, (i, kind) in lengths.items():
        record = mill.record(job_id)
        expected = expected_tokens(f"{kind} {i}", 40 + 3 * i)
        assert record.state is JobState.COMPLETED
        assert mill.store.read_tokens(job_id) == expected
        assert record.result is not None
        assert stub_text(expected) in record.result.decode()
        assert (record.suspect, record.crashes) == (0, 0)
    for reader in readers:
        reader.join(60)
        assert reader.outcome == "completed"
    prompts = dict(zip([*lengths][::10], readers, strict=True))
    for job_id, reader in prompts.items():
        i, kind = lengths[job_id]
        assert reader.token_ids == expected_tokens(f"{kind} {i}", 40 + 3 * i)

    events = take_events(mill)
    assert events == Counter(f"{job_id}_completed" for job_id in lengths)
    assert mill.store.counts().totals["completed"] == NUM_JOBS
    # Claims were lost too, and their holders wrote nothing more.
    assert any('"why": "fenced"' in worker.log for worker in workers)
    assert all(worker.process.poll() is None for worker in workers)
