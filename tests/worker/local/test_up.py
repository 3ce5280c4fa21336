"""`batchmill up` as a process: it starts, restarts, drains, and never leaves a child behind."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from openai import APIError, OpenAI

from batchmill.producer import Client
from batchmill.producer.protocol.replies import JobState
from batchmill.producer.store.job_store import JobStore

from .waiting import wait_until

COMMAND = [sys.executable, "-m", "batchmill.worker.cli", "up", "--json", "--no-flower"]


class Up:
    """One `batchmill up` in a separate folder."""

    def __init__(self, folder: Path, *arguments: str, **environment: str) -> None:
        self.folder = folder
        settings = {
            "BATCHMILL_ENGINE": "stub",
            "BATCHMILL_RUNTIME_DIR": str(folder / "run"),
            "BATCHMILL_STATE_DIR": str(folder / "state"),
            "BATCHMILL_WEBHOOK_ALLOW_HTTP": "true",
            "BATCHMILL_WEBHOOK_ALLOW_PORTS": "1024-65535",
            "BATCHMILL_WEBHOOK_ALLOW_NETWORKS": "127.0.0.0/8",
            **environment,
        }
        self.process = subprocess.Popen(
            [*COMMAND, *arguments],
            env={**os.environ, **settings},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        self.lines: list[Any] = []
        self._rest = b""

    def wait_for(self, found: Callable[[Any], bool], what: str, timeout_s: float = 90.0) -> Any:
        """Read lines of JSON until one is the one."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + timeout_s
        while True:
            while b"\n" in self._rest:
                line, self._rest = self._rest.split(b"\n", 1)
                self.lines.append(json.loads(line))
                if found(self.lines[-1]):
                    return self.lines[-1]
            left_s = deadline - time.monotonic()
            ready, _, _ = select.select([self.process.stdout], [], [], max(0.0, left_s))
            assert ready, f"not within {timeout_s} s: {what}; so far: {self.lines}"
            data = os.read(self.process.stdout.fileno(), 65536)
            assert data, f"ended before: {what}; so far: {self.lines}"
            self._rest += data

    def wait_for_event(self, text: str) -> str:
        event: str = self.wait_for(lambda line: text in line.get("event", ""), text)["event"]
        return event

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


Start = Callable[..., Up]


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[Up] = []

    with tempfile.TemporaryDirectory(prefix="bm-") as name:

        def start(*arguments: str, **environment: str) -> Up:
            started.append(Up(Path(name), *arguments, **environment))
            return started[-1]

        yield start
        for up in started:
            up.end()


def is_gone(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def has_models(url: str) -> bool:
    """Return whether a gateway answers an OpenAI client."""
    with OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        try:
            return bool(client.models.list().data)
        except APIError:
            return False


def test_up_runs_jobs_restarts_children_and_drains_on_sigterm(start: Start) -> None:
    up = start()
    facts = up.wait_for(lambda line: "broker_url" in line, "what runs")
    assert facts["broker_url"] == f"unix://{up.folder}/run/broker.sock"
    assert set(facts["logs"]) == {"broker", "worker", "deliverer", "gateway"}
    assert Path(facts["webhook_secret_file"]).stat().st_mode & 0o777 == 0o600
    up.wait_for_event("ready")
    with Client(facts["broker_url"]) as client:
        job = client.submit(prompt="hello", max_tokens=8)
        assert job.result(timeout_s=30).finish_reason == "length"
        wait_until(lambda: has_models(facts["gateway_url"]), "the gateway serves")

        os.kill(facts["pids"]["worker"], signal.SIGKILL)
        up.wait_for_event("worker ended with exit code -9")
        up.wait_for_event("worker restarted")
        os.kill(facts["pids"]["broker"], signal.SIGKILL)
        up.wait_for_event("the broker runs again")
        assert job.status().state is JobState.COMPLETED  # it was on disk
        again = client.submit(prompt="hello again", max_tokens=8)
        assert again.result(timeout_s=60).finish_reason == "length"

    children = psutil.Process(up.process.pid).children(recursive=True)
    assert len(children) >= 4  # broker, worker, its engine, deliverer
    up.process.send_signal(signal.SIGTERM)
    up.wait_for_event("stopping")
    assert up.process.wait(60) == 0
    assert all(is_gone(child) for child in children)


def test_a_setting_that_cannot_work_ends_up_at_once_with_its_own_message(start: Start) -> None:
    up = start(BATCHMILL_STUB='{"no_such_field": 1}')
    error = up.wait_for(lambda line: "error" in line, "the error")["error"]
    assert error["code"] == "invalid_settings"
    assert "the worker cannot start: BATCHMILL_STUB" in error["message"]
    assert "no_such_field" in error["message"]
    assert up.process.wait(60) == 8
    events = [line["event"] for line in up.lines if "event" in line]
    assert events[:2] == ["starting the worker", "starting the engine"]
    assert not [event for event in events if event.startswith("worker") and "restart" in event]


def test_a_second_up_names_the_first_and_stops_nothing(start: Start) -> None:
    first = start()
    facts = first.wait_for(lambda line: "pids" in line, "what runs")
    second = Up(first.folder)
    try:
        error = second.wait_for(lambda line: "error" in line, "the error")["error"]
        assert second.process.wait(60) == 3
    finally:
        second.end()
    assert str(facts["pids"]["broker"]) in error["message"]
    assert [line for line in second.lines if "event" in line] == []


def test_no_child_outlives_an_up_that_is_killed(start: Start) -> None:
    up = start()
    up.wait_for_event("ready")
    children = psutil.Process(up.process.pid).children(recursive=True)
    assert len(children) >= 4
    up.process.kill()
    wait_until(lambda: all(is_gone(child) for child in children), "all children are gone")


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("BATCHMILL_BROKER_URL", "http://host"),
        ("BATCHMILL_BROKER_URL_FILE", "/no/such/file"),
        ("BATCHMILL_WEBHOOK_SECRET_FILE", "/no/such/file"),
    ],
)
def test_settings_that_no_child_could_use_are_refused_by_name(
    variable: str, value: str, start: Start
) -> None:
    up = start(**{variable: value})
    error = up.wait_for(lambda line: "error" in line, "an error")["error"]
    assert error["code"] == "invalid_settings"
    assert up.process.wait(20) == 8


def test_second_up_names_the_broker_that_runs(start: Start) -> None:
    first = start()
    facts = first.wait_for(lambda line: "broker_url" in line, "what runs")
    second = start()
    line = second.wait_for(lambda line: "error" in line, "an error")
    assert line["error"]["code"] == "broker_failed"
    assert f"pid {facts['pids']['broker']}" in line["error"]["message"]
    assert second.process.wait(20) == 3
    assert first.process.poll() is None


def test_external_broker_is_left_alone_by_an_up_that_loses_its_terminal(
    start: Start, redis_url: str
) -> None:
    up = start("--broker-url", redis_url)
    facts = up.wait_for(lambda line: "broker_url" in line, "what runs")
    assert facts["broker_url"] == redis_url
    assert "broker" not in facts["pids"]
    up.wait_for_event("ready")
    with Client(redis_url) as client:
        assert client.submit(prompt="x", max_tokens=4).result(timeout_s=30).text
        assert up.process.stdout is not None
        up.process.stdout.close()  # as a terminal that is closed: every write fails from now on
        up.process.send_signal(signal.SIGTERM)
        assert up.process.wait(60) == 0
        # The children were stopped in order: a worker that is killed leaves its heartbeat.
        with contextlib.closing(JobStore.from_url(redis_url)) as store:
            assert store.list_workers() == []
        assert client.submit(prompt="y").status().state is JobState.QUEUED
