"""The examples for Node.js, with a real worker and a real deliverer."""

from __future__ import annotations

import http.client
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from batchmill.producer.protocol.replies import JobState
from batchmill.producer.webhook.signature import signature_headers

from ..conftest import RedisServer
from ..support.processes import free_port, wait_until
from ..worker.conftest import Mill
from ..worker.webhook_deliverers import OLD_SECRET, SECRET, Deliverers


@pytest.fixture(scope="module")
def tcp_mill(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mill]:
    """Start a mill with one worker on a TCP port: celery-node cannot use a unix socket."""
    port = free_port()
    server = RedisServer("--port", str(port), "--bind", "127.0.0.1")
    server.start()
    mill = Mill(f"redis://127.0.0.1:{port}/0", tmp_path_factory.mktemp("mill"))
    # The operator allows these targets; the deliverer has the same settings.
    mill.start_worker(
        webhook_allow_http=1,
        webhook_allow_ports="1024-65535",
        webhook_allow_networks="127.0.0.0/8",
    )
    yield mill
    mill.close()
    server.close()


def node(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["node", *arguments],
        cwd=folder,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.fixture
def receiver(node_examples: Path, tmp_path: Path) -> Iterator[tuple[int, Path]]:
    """Start the receiver of the example; yield its port and its log."""
    log = tmp_path / "receiver.log"
    environment = {**os.environ, "PORT": "0", "BATCHMILL_WEBHOOK_SECRET": SECRET}
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["node", "webhook_receiver.mjs"], cwd=node_examples, env=environment, stdout=output
        )
    try:
        yield _port(log), log
    finally:
        process.kill()
        process.wait()


def _port(log: Path) -> int:
    wait_until(lambda: log.read_text().endswith("\n"), "starting the receiver")
    return int(log.read_text().split()[-1])


def test_a_job_from_node_comes_back_as_text_and_as_a_verified_webhook(
    node_examples: Path, tcp_mill: Mill, receiver: tuple[int, Path]
) -> None:
    port, log = receiver
    deliverers = Deliverers(tcp_mill.url)
    deliverers.start()
    try:
        done = node(
            node_examples,
            *("producer.mjs", "a prompt from node", f"http://127.0.0.1:{port}/hook"),
            REDIS_URL=tcp_mill.url,
        )
        assert done.returncode == 0, done.stderr
        assert len(done.stdout.split()) == 48  # the stub's words
        tcp_mill.wait_for(lambda: "generation.completed" in log.read_text(), "the webhook")
        (_, job_id) = log.read_text().splitlines()[-1].split()
        assert tcp_mill.record(job_id).state is JobState.COMPLETED
    finally:
        deliverers.close()


@pytest.mark.parametrize(("secret", "status"), [(SECRET, 204), (OLD_SECRET, 401)])
def test_the_receiver_accepts_only_events_signed_with_its_secret(
    receiver: tuple[int, Path], secret: str, status: int
) -> None:
    body = b'{"type": "generation.completed", "data": {"id": "forged"}}'
    headers = signature_headers("evt_1", int(time.time()), body, secrets=[secret])
    connection = http.client.HTTPConnection("127.0.0.1", receiver[0], timeout=60)
    connection.request("POST", "/hook", body, dict(headers))
    assert connection.getresponse().status == status
    connection.close()


def test_the_node_producer_reports_why_a_document_was_refused(
    node_examples: Path, tcp_mill: Mill
) -> None:
    done = node(node_examples, "producer.mjs", "x", "ftp://example.com", REDIS_URL=tcp_mill.url)

    assert done.returncode != 0
    assert "invalid_request: webhook" in done.stderr
    (letter,) = tcp_mill.store.dead_letters()
    tcp_mill.store.dead_letter_drop(letter.id)


@pytest.mark.parametrize("protocol", ["1", "2"])
def test_celery_node_gets_its_result_in_both_protocols(
    node_examples: Path, tcp_mill: Mill, protocol: str
) -> None:
    done = node(
        node_examples, "celery_producer.mjs", "x", REDIS_URL=tcp_mill.url, TASK_PROTOCOL=protocol
    )

    assert done.returncode == 0, done.stderr
    assert len(done.stdout.split()) == 48
    assert not tcp_mill.store.dead_letters()
