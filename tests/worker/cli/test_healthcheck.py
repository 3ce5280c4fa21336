"""`batchmill healthcheck` against heartbeats of this host and of others."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time

import pytest

from batchmill.producer.protocol.records import WorkerInfo
from batchmill.producer.store.job_store import JobStore

from ...conftest import RedisServer

HOST = socket.gethostname()


def heartbeat(name: str, state: str) -> WorkerInfo:
    return WorkerInfo(
        name=name,
        model="demo",
        identity="stub",
        queues=("batchmill.demo.normal",),
        max_model_len=16,
        max_num_seqs=1,
        started_at_ms=0,
        state=state,
        versions=(1,),
    )


def run_healthcheck(url: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "batchmill.worker.cli", "healthcheck", "--broker-url", url]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_a_ready_worker_of_this_host_is_healthy(redis_url: str) -> None:
    store = JobStore.from_url(redis_url)
    store.announce_worker(heartbeat(f"demo-1@{HOST}", "ready"))
    store.close()
    done = run_healthcheck(redis_url)
    assert (done.returncode, done.stdout) == (0, f"ready: demo-1@{HOST}\n")


@pytest.mark.parametrize(
    ("name", "state", "reason"),
    [
        (f"demo-1@{HOST}", "starting", "is starting"),
        ("demo-1@elsewhere", "ready", "none sends a heartbeat"),
    ],
)
def test_a_worker_that_loads_or_runs_elsewhere_is_not_healthy(
    name: str, state: str, reason: str, redis_url: str
) -> None:
    store = JobStore.from_url(redis_url)
    store.announce_worker(heartbeat(name, state))
    store.close()
    done = run_healthcheck(redis_url)
    assert (done.returncode, done.stdout) == (1, "")
    assert reason in done.stderr


def test_a_broker_that_does_not_answer_has_its_own_exit_code() -> None:
    assert run_healthcheck("unix:///nowhere/broker.sock").returncode == 3


def test_a_worker_is_healthy_while_redis_is_full(redis_url: str) -> None:
    store = JobStore.from_url(redis_url)
    store.client.config_set("maxmemory", "1")
    try:
        store.announce_worker(heartbeat(f"demo-1@{HOST}", "ready"))
        done = run_healthcheck(redis_url)
    finally:
        store.client.config_set("maxmemory", "0")
        store.close()
    assert (done.returncode, done.stdout) == (0, f"ready: demo-1@{HOST}\n")


def test_a_frozen_broker_ends_the_check_within_seconds(private_redis_server: RedisServer) -> None:
    process = private_redis_server.process
    assert process is not None
    process.send_signal(signal.SIGSTOP)
    start_s = time.monotonic()
    try:
        done = run_healthcheck(private_redis_server.url)
    finally:
        process.send_signal(signal.SIGCONT)
    assert done.returncode == 3
    assert time.monotonic() - start_s < 15  # most of it is Python's start on a loaded machine
