"""The README does what it says: its Python runs against a live stack, its commands are typed in."""

from __future__ import annotations

import http.client
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from standardwebhooks.webhooks import Webhook

from batchmill.producer import new_secret
from batchmill.producer.store import JobStore

from .public_face import ROOT

README = (ROOT / "README.md").read_text()
DEADLINE_S = 60


def block(language: str, containing: str) -> str:
    """The one fenced block of a language that holds some text."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    (found,) = [text for text in blocks if containing in text]
    return str(found)


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"{what} took more than {DEADLINE_S} s"
        time.sleep(0.02)


@contextmanager
def process(*command: str, environment: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
    """Run a program beside the test, and end it as an operator would."""
    child = subprocess.Popen(
        [sys.executable, *command],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield child
    finally:
        child.send_signal(signal.SIGTERM)
        try:
            child.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            child.kill()
            child.communicate()
            raise


@pytest.fixture(scope="module")
def environment() -> dict[str, str]:
    return {"BATCHMILL_ENGINE": "stub", "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"}


@pytest.fixture
def live_stack(redis_url: str, environment: dict[str, str]) -> Iterator[dict[str, str]]:
    """A broker and a ready worker; yields the environment that reaches them."""
    reaches = {**environment, "BATCHMILL_BROKER_URL": redis_url}
    store = JobStore.from_url(redis_url)
    with process("-m", "batchmill.worker.cli", "worker", environment=reaches) as worker:

        def is_ready() -> bool:
            assert worker.poll() is None, worker.communicate()[0]
            return any(info.state == "ready" for info in store.list_workers())

        wait_until(is_ready, "starting the worker")
        yield reaches
    store.close()


def run(*command: str, environment: Mapping[str, str], cwd: Path | None = None) -> str:
    done = subprocess.run(
        [sys.executable, *command],
        env={**os.environ, **environment},
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("containing", ["client = Client()", "AsyncClient"])
def test_the_enqueue_and_await_example_prints_a_text(
    containing: str, live_stack: dict[str, str]
) -> None:
    assert run("-c", block("python", containing), environment=live_stack).strip() != ""


def test_the_shell_examples_work_as_typed(live_stack: dict[str, str], tmp_path: Path) -> None:
    lines = block("sh", "batchmill submit").replace("\\\n", " ").splitlines()
    job_id = ""
    num_run = 0
    for line in lines:
        words = shlex.split(line, comments=True)
        if words[:1] != ["batchmill"] or words[1] == "up":
            continue
        words = [job_id if word == "ID" else word for word in words[1:]]
        output = run("-m", "batchmill.worker.cli", *words, environment=live_stack, cwd=tmp_path)
        job_id = output.strip() if words[0] == "submit" and "--wait" not in words else job_id
        num_run += 1
    assert num_run >= 3


def test_the_webhook_receiver_believes_only_what_is_signed(environment: dict[str, str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    source = block("python", "verify_webhook")
    assert source.count("8000") == 1
    secret = new_secret()
    reaches = {**environment, "BATCHMILL_WEBHOOK_SECRET": secret}
    with process("-c", source.replace("8000", str(port)), environment=reaches) as receiver:

        def listens() -> bool:
            assert receiver.poll() is None, receiver.communicate()[0]
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        wait_until(listens, "starting the receiver")
        assert post_event(port, secret) == 204
        assert post_event(port, new_secret()) == 401
        receiver.send_signal(signal.SIGTERM)
        output = receiver.communicate(timeout=30)[0]
    assert "generation.completed gen_1" in output


def post_event(port: int, secret: str) -> int:
    """Send an event signed by an independent library; the answer's status."""
    data = {"id": "gen_1", "status": "completed"}
    now = datetime.now(UTC)
    body = json.dumps({"type": "generation.completed", "timestamp": now.isoformat(), "data": data})
    headers = {
        "webhook-id": "evt_1",
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": Webhook(secret).sign("evt_1", now, body),
    }
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("POST", "/", body, headers)
        return connection.getresponse().status
    finally:
        connection.close()


def test_the_engine_example_generates_with_the_demo_model(environment: dict[str, str]) -> None:
    lines = run("-c", block("python", "EngineConfig("), environment=environment).splitlines()
    assert len([line for line in lines if line.strip()]) >= 2
