"""`batchmill healthcheck`: liveness and readiness of workers and deliverers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from batchmill.worker.health.report import MAX_AGE_S, HealthFile, HealthReport, read_reports
from batchmill.worker.local.state_dir import make_private_directory

from ...conftest import RedisServer
from ..conftest import Mill
from ..webhook_deliverers import Deliverers

HEALTHY = HealthReport("worker", "demo-1@here", None, None, None)
LIVE, READY = ("--live",), ("--ready",)


class Host:
    """A machine's health files, and the probes that read them."""

    def __init__(self, runtime_dir: Path) -> None:
        self.runtime_dir = runtime_dir
        self.folder = runtime_dir / "health"

    def probe(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "batchmill.worker.cli", "healthcheck", *arguments],
            env={**os.environ, "BATCHMILL_RUNTIME_DIR": str(self.runtime_dir)},
            capture_output=True,
            text=True,
            timeout=60,
        )

    def codes(self, service: str = "worker") -> tuple[int, int]:
        """Return the exit codes of the probes for liveness and readiness."""
        return self.probe(service, *LIVE).returncode, self.probe(service, *READY).returncode


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


@pytest.fixture
def file(host: Host) -> Iterator[HealthFile]:
    """The health file of a worker, which this process stands for."""
    file = HealthFile("worker", host.folder)
    yield file
    file.remove()


def test_a_healthy_worker_is_live_and_ready(host: Host, file: HealthFile) -> None:
    file.write(HEALTHY)
    assert host.probe().stdout == "ready: demo-1@here\n"
    assert host.probe("worker", *LIVE).stdout == "live: demo-1@here\n"
    assert host.folder.stat().st_mode & 0o077 == 0


def test_the_embedded_broker_takes_the_folder_that_a_worker_made_first(tmp_path: Path) -> None:
    host = Host(tmp_path / "runtime")
    file = HealthFile("worker", host.folder)
    file.write(HEALTHY)
    make_private_directory(host.runtime_dir, "BATCHMILL_RUNTIME_DIR")


@pytest.mark.parametrize(
    ("problem", "codes", "reason"),
    [
        ({"live_problem": "the engine stands still"}, (1, 1), "not live: the engine stands still"),
        ({"ready_problem": "it is shutting down"}, (0, 1), "not ready: it is shutting down"),
        ({"broker_problem": "Redis is away"}, (0, 3), "not ready: Redis is away"),
    ],
)
def test_each_kind_of_problem_has_its_exit_code(
    problem: dict[str, str], codes: tuple[int, int], reason: str, host: Host, file: HealthFile
) -> None:
    file.write(replace(HEALTHY, **problem))
    assert host.codes() == codes
    assert reason in host.probe().stderr


def test_a_process_that_stopped_writing_is_not_live(host: Host, file: HealthFile) -> None:
    file.write(HEALTHY)
    [path] = host.folder.iterdir()
    fields = json.loads(path.read_text())
    path.write_text(json.dumps(fields | {"written_at_s": fields["written_at_s"] - MAX_AGE_S - 1}))
    assert host.codes() == (1, 1)
    assert "has not moved for" in host.probe().stderr


def test_a_process_that_is_gone_does_not_count(host: Host, file: HealthFile) -> None:
    file.write(HEALTHY)
    [path] = host.folder.iterdir()
    fields = json.loads(path.read_text())
    path.write_text(json.dumps(fields | {"process_start": fields["process_start"] - 1}))
    assert "no worker of this user runs" in host.probe().stderr
    assert list(host.folder.iterdir()) == []


def test_both_probes_at_once_are_refused(host: Host) -> None:
    assert host.probe(*LIVE, *READY).returncode == 2


def is_live_and_ready(host: Host, service: str = "worker") -> tuple[bool, bool, bool] | None:
    """Return whether a service is live, is ready but for Redis, and hears from Redis."""
    for report in read_reports(service, host.folder):
        problems = (report.live_problem, report.ready_problem, report.broker_problem)
        return problems[0] is None, problems[1] is None, problems[2] is None
    return None


WELL, WITHOUT_REDIS, LOADING = (True, True, True), (True, True, False), (True, False, True)


def test_a_worker_that_loads_its_model_is_live_and_not_ready(mill: Mill, host: Host) -> None:
    mill.launch(stub={"load_time_s": 60}, runtime_dir=host.runtime_dir)
    mill.wait_for(lambda: is_live_and_ready(host) == LOADING, "its health file")


def test_a_worker_stays_live_while_redis_is_full_frozen_or_away(
    private_mill: Mill, private_redis_server: RedisServer, host: Host
) -> None:
    mill, server = private_mill, private_redis_server
    assert server.process is not None
    worker = mill.start_worker(runtime_dir=host.runtime_dir)
    mill.wait_for(lambda: is_live_and_ready(host) == WELL, "readiness")
    mill.store.client.config_set("maxmemory", "1")

    server.process.send_signal(signal.SIGSTOP)
    mill.wait_for(lambda: is_live_and_ready(host) != WELL, "the outage to show")
    assert is_live_and_ready(host) == WITHOUT_REDIS
    assert host.codes() == (0, 3)
    server.process.send_signal(signal.SIGCONT)
    # Full, but it takes heartbeats.
    mill.wait_for(lambda: is_live_and_ready(host) == WELL, "readiness again")
    mill.store.client.config_set("maxmemory", "0")

    worker.end(signal.SIGTERM)
    assert list(host.folder.iterdir()) == []


def test_a_deliverer_stays_live_while_redis_is_frozen(
    private_redis_server: RedisServer, host: Host, monkeypatch: pytest.MonkeyPatch, mill: Mill
) -> None:
    assert private_redis_server.process is not None
    monkeypatch.setenv("BATCHMILL_RUNTIME_DIR", str(host.runtime_dir))
    deliverers = Deliverers(private_redis_server.url)
    try:
        deliverers.start()
        mill.wait_for(lambda: is_live_and_ready(host, "deliverer") == WELL, "readiness")
        private_redis_server.process.send_signal(signal.SIGSTOP)
        mill.wait_for(
            lambda: is_live_and_ready(host, "deliverer") == WITHOUT_REDIS, "the outage to show"
        )
    finally:
        private_redis_server.process.send_signal(signal.SIGCONT)
        deliverers.close()
