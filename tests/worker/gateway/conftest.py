"""Real gateway processes before real workers, and the stock clients of OpenAI and Anthropic."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from openai import OpenAI

from batchmill.producer.store.api_keys import create_api_key

from ...conftest import RedisServer
from ...support.prepared_python import prepared_python
from ...support.processes import CLI
from ..conftest import Mill, WorkerProcess

#: Generous: the machine may be busy.
DEADLINE_S = 120
#: Between the comments in a silent stream of the shared gateway.
HEARTBEAT_S = 0.25


class Gateway:
    """One gateway process, with its log in a file."""

    def __init__(self, broker_url: str, log_path: Path, **settings: object) -> None:
        self.log_path = log_path
        values: dict[str, object] = {"broker_url": broker_url, "gateway_port": 0, **settings}
        kept = {name: value for name, value in os.environ.items() if name[:10] != "BATCHMILL_"}
        given = {f"BATCHMILL_{name.upper()}": str(value) for name, value in values.items()}
        self.process = prepared_python().start(
            *CLI, "gateway", "--json", environment=kept | given, log=log_path
        )
        self.url = self._wait_for_url()

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1].split("/")[0])

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(DEADLINE_S)
            except subprocess.TimeoutExpired:
                self.kill()
                raise

    def events(self) -> list[dict[str, Any]]:
        """Return the lines of the log that are JSON."""
        lines = self.log_path.read_text().splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def _wait_for_url(self) -> str:
        deadline = time.monotonic() + DEADLINE_S
        while time.monotonic() < deadline:
            for event in self.events():
                if event["event"] == "gateway_started":
                    return str(event["url"])
            if self.process.poll() is not None:
                break
            time.sleep(0.02)
        self.kill()
        pytest.fail(f"the gateway did not start:\n{self.log_path.read_text()}")


Start = Callable[..., Gateway]


@pytest.fixture
def start_gateway(tmp_path: Path) -> Iterator[Start]:
    """Start gateways that end with the test."""
    started: list[Gateway] = []

    def start(broker_url: str, **settings: object) -> Gateway:
        gateway = Gateway(broker_url, tmp_path / f"gateway-{len(started)}.log", **settings)
        started.append(gateway)
        return gateway

    yield start
    for gateway in started:
        gateway.close()


class Site:
    """A server, one worker and one gateway with a key, shared by all tests of this folder."""

    def __init__(self, folder: Path) -> None:
        self.server = RedisServer()
        self.server.start()
        self.mill = Mill(self.server.url, folder)
        self.secret = make_key(self.mill)
        self.files = folder / "files"
        # Requests that a test makes up may ask for any number of tokens; none holds the worker up.
        start_worker(self.mill, stub={"max_model_len": 2048})
        self.gateway = Gateway(
            self.server.url,
            folder / "gateway.log",
            gateway_files_url=self.files,
            gateway_heartbeat_s=HEARTBEAT_S,
        )

    @property
    def url(self) -> str:
        return self.gateway.url

    def close(self) -> None:
        self.gateway.close()
        self.mill.close()
        self.server.close()


def start_worker(mill: Mill, name: str = "w1", **settings: Any) -> WorkerProcess:
    """Start a worker and wait until it takes jobs."""
    worker = mill.launch(name, **settings)
    mill.wait_for(lambda: mill.heartbeat(worker), "the worker", timeout_s=DEADLINE_S)
    return worker


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    site = Site(tmp_path_factory.mktemp("site"))
    yield site
    site.close()


@pytest.fixture(scope="session")
def openai(site: Site) -> Iterator[OpenAI]:
    """The stock client."""
    with new_client(site.url, site.secret) as client:
        yield client


@pytest.fixture(scope="session")
def http(site: Site) -> Iterator[httpx2.Client]:
    """A plain client, for what the stock ones do not show."""
    root = site.url.removesuffix("/v1")
    headers = {"authorization": f"Bearer {site.secret}"}
    with httpx2.Client(base_url=root, headers=headers, timeout=DEADLINE_S) as client:
        yield client


def make_key(mill: Mill, **fields: Any) -> str:
    """Make an API key and return its secret."""
    return create_api_key(mill.store, "test", **fields)[1]


def new_client(url: str, secret: str, **options: Any) -> OpenAI:
    """Return the stock client with an API key; the caller closes it."""
    given = {"max_retries": 0, "timeout": DEADLINE_S, **options}
    return OpenAI(base_url=url, api_key=secret, **given)


#: The clients that `close_clients` closes when their test has ended.
_clients_of_test: list[Any] = []


def client_of(url: str, secret: str, **options: Any) -> OpenAI:
    """Return the stock client with an API key; it is closed at the end of the test."""
    client = new_client(url, secret, **options)
    _clients_of_test.append(client)
    return client


@pytest.fixture(autouse=True)
def close_clients() -> Iterator[None]:
    """Close what `client_of` returned, because a socket left open is a warning."""
    yield
    while _clients_of_test:
        _clients_of_test.pop().close()


_LINE = (
    b'{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "demo",'
    b' "max_tokens": 2, "messages": [{"role": "user", "content": "hello"}]}}\n'
)


def make_objects(owner: httpx2.Client) -> dict[str, str]:
    """Make an object of each kind, wait until it has ended, and return its id."""
    file = owner.post(
        "/v1/files",
        data={"purpose": "batch"},
        files={"file": ("questions.jsonl", _LINE, "application/jsonl")},
    ).json()
    batch = owner.post(
        "/v1/batches",
        json={
            "input_file_id": file["id"],
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
        },
    ).json()
    response = owner.post(
        "/v1/responses", json={"model": "demo", "input": "hello", "max_output_tokens": 2}
    ).json()
    params = {"model": "demo", "max_tokens": 2, "messages": [{"role": "user", "content": "hi"}]}
    messages = owner.post(
        "/v1/messages/batches", json={"requests": [{"custom_id": "a", "params": params}]}
    ).json()
    endpoint = owner.post(
        "/v1/webhook_endpoints",
        json={"name": "a", "url": "https://receiver.invalid/", "event_types": ["batch.failed"]},
    ).json()
    _wait_for(owner, f"/v1/batches/{batch['id']}", "status", "completed")
    _wait_for(owner, f"/v1/messages/batches/{messages['id']}", "processing_status", "ended")
    return {
        "files": file["id"],
        "batches": batch["id"],
        "responses": response["id"],
        "messages/batches": messages["id"],
        "webhook_endpoints": endpoint["id"],
    }


def _wait_for(client: httpx2.Client, path: str, field: str, value: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while (found := client.get(path).json())[field] != value:
        assert time.monotonic() < deadline, found
        time.sleep(0.02)
