"""Redis is frozen, loses connections or replies, or a network swallows them, while jobs run."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from batchmill.producer.protocol.replies import JobState
from batchmill.worker.chaos.links import Link, Links

from ...conftest import RedisServer
from ...support.processes import free_port
from ..announcements import QUEUE, announcement
from ..conftest import Mill, WorkerProcess, stored_result

LEASE_S = 4
HOOK = "https://example.com/hook"
#: A job that runs for about two seconds.
FIELDS = {"max_tokens": 200, "webhook": HOOK}


class Site:
    """A mill with one worker, which reaches its server through a proxy."""

    def __init__(self, mill: Mill, server: RedisServer, link: Link) -> None:
        self.mill = mill
        self.server = server
        self.link = link
        self.worker: WorkerProcess = mill.start_worker(
            broker_url=link.url, broker_timeout_s=2, lease_s=LEASE_S, stub={"step_time_s": 0.01}
        )

    def signal_server(self, number: int) -> None:
        assert self.server.process is not None
        self.server.process.send_signal(number)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    port = free_port()
    server = RedisServer("--port", str(port), "--bind", "127.0.0.1")
    server.start()
    links = Links(f"redis://127.0.0.1:{port}/0")
    mill = Mill(server.url, tmp_path_factory.mktemp("disturbed"))
    yield Site(mill, server, links.add())
    mill.close()
    links.close()
    server.close()


def freeze_server(site: Site) -> None:
    site.signal_server(signal.SIGSTOP)
    time.sleep(1.5)  # less than a lease, more than any wait for a reply
    site.signal_server(signal.SIGCONT)


def kill_connections(site: Site) -> None:
    for _ in range(10):
        for kind in ("normal", "pubsub"):
            site.mill.store.client.client_kill_filter(_type=kind, skipme=True)
        time.sleep(0.1)  # often enough that few calls succeed at once


def lose_requests(site: Site) -> None:
    site.link.lose_requests()


def lose_replies(site: Site) -> None:
    site.link.lose_replies()


def cut_replies(site: Site) -> None:
    site.link.cut_replies(0.3)
    time.sleep(1)
    site.link.cut_replies(0.0)


@pytest.mark.parametrize(
    "disturb", [freeze_server, kill_connections, lose_requests, lose_replies, cut_replies]
)
def test_a_running_job_continues_and_ends_once(
    site: Site, disturb: Callable[[Site], None], reference: Callable[..., Any]
) -> None:
    mill = site.mill
    job_id = mill.submit(f"under {disturb.__name__}", **FIELDS)
    mill.wait_tokens(job_id, 8)

    disturb(site)

    (record,) = mill.wait_ended(job_id)
    assert (record.state, record.attempts, record.suspect) == (JobState.COMPLETED, 1, 0)
    text = reference(f"under {disturb.__name__}", 200)[1]
    assert stored_result(record)["text"] == text
    assert mill.computed(job_id) == list(range(200))
    assert events_of(mill, job_id) == [f"evt_{job_id}_completed"]
    assert site.worker.process.poll() is None
    site.link.cut()  # what is still half-open would take some seconds to be noticed


@pytest.mark.parametrize("disturb", [lose_requests, lose_replies])
def test_the_consumer_leaves_a_half_open_connection_within_seconds(
    site: Site, disturb: Callable[[Site], None]
) -> None:
    mill = site.mill
    mill.wait_ended(mill.submit("before", max_tokens=3))
    disturb(site)

    # Two calls that run into the timeout of a socket, the longest back-off, and as much again for a
    # busy machine.
    mill.wait_ended(mill.submit("behind it", max_tokens=3), timeout_s=16)


def test_storms_leave_no_thread_and_no_descriptor_behind(site: Site) -> None:
    mill, pid = site.mill, site.worker.process.pid
    mill.wait_ended(mill.submit("before", max_tokens=3))
    before = (num_threads(pid), num_descriptors(pid))

    for _ in range(3):
        kill_connections(site)
        mill.wait_ended(mill.submit("between", max_tokens=3))

    mill.wait_for(lambda: num_threads(pid) <= before[0], "threads to end")
    # Some connections are made when they are needed; those that were cut are closed soon.
    mill.wait_for(lambda: num_descriptors(pid) <= before[1] + 4, "descriptors to be closed")


def test_a_job_that_ended_before_its_message_was_acknowledged_ends_once(site: Site) -> None:
    """As after a worker that was killed between the end in the record and the acknowledgement."""
    mill = site.mill
    job_id = mill.submit("ended", max_tokens=3, webhook=HOOK)
    (record,) = mill.wait_ended(job_id)

    mill.store.client.lpush(QUEUE, announcement(job_id))
    mill.wait_for(lambda: not mill.store.client.llen(QUEUE), "the message to be taken")
    mill.wait_ended(mill.submit("after it", max_tokens=3))

    after = mill.record(job_id)
    assert (after.attempts, after.result) == (1, record.result)
    assert events_of(mill, job_id) == [f"evt_{job_id}_completed"]


def events_of(mill: Mill, job_id: str) -> list[str]:
    names = (key.decode() for key in mill.store.client.scan_iter(f"batchmill:event:*{job_id}*"))
    return sorted(name.removeprefix("batchmill:event:") for name in names)


def num_threads(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/task"))


def num_descriptors(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))
