"""A Redis that replies with an error, instead of being gone, ends no worker and no job."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from batchmill.producer.protocol import keys
from batchmill.producer.protocol.replies import JobState

from ..conftest import Mill

Change = Callable[[Any], None]


def become_replica(client: Any) -> None:
    client.execute_command("REPLICAOF", "127.0.0.1", "1")  # nothing listens there


def become_primary(client: Any) -> None:
    client.execute_command("REPLICAOF", "NO", "ONE")


def need_replicas(client: Any) -> None:
    client.config_set("min-replicas-to-write", 1)


def need_no_replicas(client: Any) -> None:
    client.config_set("min-replicas-to-write", 0)


def fail_to_save(client: Any) -> None:
    """Make a snapshot fail, as on a full disk: Redis then refuses writes (MISCONF)."""
    client.config_set("save", "3600 1")
    client.execute_command("CONFIG", "SET", "dir", "/proc/self")
    client.execute_command("BGSAVE")
    deadline = time.monotonic() + 10
    while client.info("persistence")["rdb_last_bgsave_status"] != "err":
        assert time.monotonic() < deadline
        time.sleep(0.02)


def save_again(client: Any) -> None:
    client.config_set("stop-writes-on-bgsave-error", "no")


@pytest.mark.parametrize(
    ("refuse", "accept"),
    [
        pytest.param(become_replica, become_primary, id="READONLY"),
        pytest.param(need_replicas, need_no_replicas, id="NOREPLICAS"),
        pytest.param(fail_to_save, save_again, id="MISCONF"),
    ],
)
def test_a_worker_outlives_a_server_that_refuses_writes(
    private_mill: Mill, refuse: Change, accept: Change
) -> None:
    mill, client = private_mill, private_mill.store.client
    worker = mill.start_worker(stub={"step_time_s": 0.02})
    running = mill.submit(max_tokens=150)
    mill.wait_tokens(running, 8)

    refuse(client)
    mill.wait_for(lambda: "redis_unavailable" in worker.log, "the refusal to be noticed")
    time.sleep(1)
    accept(client)

    (record,) = mill.wait_ended(running)
    assert (record.state, record.attempts, record.suspect) == (JobState.COMPLETED, 1, 0)
    later = mill.submit("later", max_tokens=3)
    assert mill.wait_ended(later)[0].state is JobState.COMPLETED
    assert worker.process.poll() is None


def test_a_worker_outlives_a_queue_of_another_type(mill: Mill) -> None:
    queue = keys.queue_name("demo", "normal")
    worker = mill.start_worker()
    mill.store.client.set(queue, "not a list")
    mill.wait_for(lambda: "Connection to broker lost" in worker.log, "the refusal")
    mill.store.client.delete(queue)

    job_id = mill.submit(max_tokens=3)

    assert mill.wait_ended(job_id)[0].state is JobState.COMPLETED
    assert worker.process.poll() is None
