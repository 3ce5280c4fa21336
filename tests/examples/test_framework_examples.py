"""The examples for web frameworks and for another Celery app, with a real worker."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from batchmill.producer import Client
from batchmill.producer.store.job_store import JobStore
from batchmill.producer.webhook.signature import new_secret, signature_headers

from ..conftest import RedisServer
from ..structure.public_interface import ROOT
from ..support.processes import STUB, process, ready_worker

EXAMPLES = ROOT / "examples"


def needs(package: str) -> pytest.MarkDecorator:
    """Skip a test, before a worker starts, if a framework is not installed: none is required."""
    is_missing = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(is_missing, reason=f"{package} is not installed")


def example(name: str) -> Any:
    """Import an example as a new module."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def running_worker(
    _session_server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Start a worker for all tests here; yield the URL of the broker."""
    store = JobStore.from_url(_session_server.url)
    store.client.flushall()
    with ready_worker(_session_server.url, store, tmp_path_factory.mktemp("worker")):
        yield _session_server.url
    store.close()


@pytest.fixture
def worker(running_worker: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Set the environment so that clients reach the worker; return the URL."""
    monkeypatch.setenv("BATCHMILL_BROKER_URL", running_worker)
    monkeypatch.syspath_prepend(EXAMPLES)  # they import each other, as from their own folder
    return running_worker


@asynccontextmanager
async def served(app: Any) -> AsyncIterator[None]:
    """Start an ASGI app before a block and end it afterwards, as a server does."""
    incoming: asyncio.Queue[dict[str, str]] = asyncio.Queue()
    outgoing: asyncio.Queue[dict[str, str]] = asyncio.Queue()
    lifespan = asyncio.create_task(
        app({"type": "lifespan", "asgi": {"version": "3.0"}}, incoming.get, outgoing.put)
    )
    for event in ("startup", "shutdown"):
        await incoming.put({"type": f"lifespan.{event}"})
        assert (await outgoing.get())["type"] == f"lifespan.{event}.complete"
        if event == "startup":
            yield
    await lifespan


async def request(
    app: Any, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
) -> tuple[int, Any]:
    """Send one request; return the status and the JSON of the response."""
    status, content, _ = await full_request(app, method, path, body, headers)
    return status, content


async def full_request(
    app: Any, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
) -> tuple[int, Any, dict[bytes, bytes]]:
    """Send one request; return the status, the JSON and the headers of the response."""
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "scheme": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [
            (name.lower().encode(), value.encode())
            for name, value in {"content-type": "application/json", **(headers or {})}.items()
        ],
        "root_path": "",
        "client": None,
        "server": None,
    }
    parts = [{"type": "http.request", "body": body, "more_body": False}]
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return parts.pop() if parts else {"type": "http.disconnect"}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await app(scope, receive, send)
    content = b"".join(message.get("body", b"") for message in sent[1:])
    status, sent_headers = sent[0]["status"], dict(sent[0]["headers"])
    return status, json.loads(content) if content else None, sent_headers


async def wait_for_end(app: Any, job_id: str) -> Any:
    """Return a job once it has ended."""
    while True:
        status, content = await request(app, "GET", f"/jobs/{job_id}")
        assert status == 200
        if content["state"] not in ("queued", "in_progress"):
            return content
        await asyncio.sleep(0.02)


def test_the_asgi_example_submits_and_shows_jobs(worker: str) -> None:
    app = example("asgi_app").app

    async def use() -> None:
        async with served(app):
            status, content = await request(app, "POST", "/jobs", b"Once upon a time")
            assert status == 202
            done = await asyncio.wait_for(wait_for_end(app, content["id"]), 60)
            assert len(done["text"].split()) == 48
            assert (await request(app, "POST", "/jobs", b""))[0] == 422
            assert (await request(app, "POST", "/jobs", b"x" * 100_000))[0] == 413
            assert (await request(app, "GET", "/jobs/none"))[0] == 404

    asyncio.run(use())
    asyncio.run(use())  # a second server in this process has another loop and client


@needs("fastapi")
def test_the_fastapi_example_submits_shows_and_receives(
    worker: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = new_secret()
    monkeypatch.setenv("BATCHMILL_WEBHOOK_SECRET", secret)
    app = example("fastapi_app").app
    hook = b'{"type": "generation.completed", "timestamp": "x", "data": {"id": "gen_1"}}'
    signed = dict(signature_headers("evt_1", int(time.time()), hook, secrets=[secret]))

    async def use() -> None:
        async with served(app):
            document = json.dumps({"prompt": "x", "max_tokens": 3}).encode()
            status, content = await request(app, "POST", "/jobs", document)
            assert status == 202
            assert (await asyncio.wait_for(wait_for_end(app, content["id"]), 60))[
                "output_tokens"
            ] == 3
            assert (await request(app, "POST", "/jobs", b'{"prompt": "x", "nme": 1}'))[0] == 422
            assert (await request(app, "GET", "/jobs/none"))[0] == 404
            assert (await request(app, "POST", "/hook", hook, signed))[0] == 204
            assert (await request(app, "POST", "/hook", hook + b" ", signed))[0] == 401

    asyncio.run(use())
    assert capsys.readouterr().out == "generation.completed gen_1\n"


@pytest.mark.parametrize(
    ("name", "body"),
    [
        ("asgi_app", b"x"),
        pytest.param("fastapi_app", b'{"prompt": "x", "max_tokens": 48}', marks=needs("fastapi")),
    ],
)
def test_a_job_that_too_few_replicas_have_is_a_503_with_its_id(
    worker: str, monkeypatch: pytest.MonkeyPatch, name: str, body: bytes
) -> None:
    monkeypatch.setenv("BATCHMILL_BROKER_MIN_REPLICAS", "1")  # the server has none
    monkeypatch.setenv("BATCHMILL_BROKER_REPLICA_TIMEOUT_S", "0.05")
    app, key = example(name).app, {"Idempotency-Key": f"key-of-{name}"}

    async def use() -> None:
        async with served(app):
            status, content, headers = await full_request(app, "POST", "/jobs", body, key)
            assert (status, headers[b"retry-after"]) == (503, b"5")
            assert content["error"] == "not_replicated"
            [job_id] = content["job_ids"]
            assert await request(app, "POST", "/jobs", body, key) == (503, content)
            # Repeated without a key, it would be a second job.
            status, content, headers = await full_request(app, "POST", "/jobs", body)
            assert (status, content["error"]) == (503, "not_replicated")
            assert b"retry-after" not in headers
            await asyncio.wait_for(wait_for_end(app, job_id), 60)

    asyncio.run(use())


_DJANGO = """
import sys, time
from django.conf import settings
settings.configure(ROOT_URLCONF="django_view", ALLOWED_HOSTS=["*"], SECRET_KEY="x", USE_TZ=True)
import django; django.setup()
from django.test import Client
from batchmill.producer.webhook.signature import signature_headers
import os
web = Client()
response = web.post("/jobs", {"prompt": "Once"})
assert response.status_code == 202, response.content
job_id = response.json()["id"]
deadline = time.monotonic() + 60
while (shown := web.get(f"/jobs/{job_id}").json())["state"] != "completed":
    assert time.monotonic() < deadline, shown
assert shown["output_tokens"] == 48
assert web.post("/jobs", {}).status_code == 422
assert web.get("/jobs/none").status_code == 404
hook = b'{"type": "generation.completed", "timestamp": "x", "data": {"id": "gen_1"}}'
secret = os.environ["BATCHMILL_WEBHOOK_SECRET"]
signed = signature_headers("evt_1", int(time.time()), hook, secrets=[secret])
post = lambda body: web.post("/hook", body, content_type="application/json", headers=dict(signed))
assert post(hook).status_code == 204
assert post(hook + b" ").status_code == 401
import django_view
os.environ |= {"BATCHMILL_BROKER_MIN_REPLICAS": "1", "BATCHMILL_BROKER_REPLICA_TIMEOUT_S": "0.05"}
django_view.client.cache_clear()
again = lambda: web.post("/jobs", {"prompt": "Once"}, headers={"Idempotency-Key": "key-of-django"})
stored = again()
assert (stored.status_code, stored.headers["Retry-After"]) == (503, "5"), stored.content
assert stored.json()["error"] == "not_replicated"
assert again().json() == stored.json()
assert "Retry-After" not in web.post("/jobs", {"prompt": "Once"}).headers
assert web.get("/jobs/" + stored.json()["job_ids"][0]).status_code == 200
"""


@needs("django")
def test_the_django_example_submits_shows_and_receives(worker: str) -> None:
    # Django has one set of settings per process, so this test runs in another process.
    path = os.pathsep.join([str(EXAMPLES), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "BATCHMILL_WEBHOOK_SECRET": new_secret()}
    done = subprocess.run(
        [sys.executable, "-c", _DJANGO], env=environment, capture_output=True, text=True, timeout=90
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "generation.completed gen_1\n"


def test_the_celery_example_sends_a_task_and_submits_in_forked_workers(
    worker: str, tmp_path: Path
) -> None:
    shop = example("celery_task")
    result = shop.send("Once upon a time").get(timeout=60)
    assert result["usage"]["completion_tokens"] == 48

    environment = {
        **STUB,
        "BATCHMILL_BROKER_URL": worker,
        "PYTHONPATH": os.pathsep.join([str(EXAMPLES), os.environ.get("PYTHONPATH", "")]),
    }
    command = ("-m", "celery", "-A", "celery_task", "worker", "-c", "2", "-n", "shop@test")
    log = tmp_path / "shop.log"
    with process(*command, environment=environment, log=log), Client(worker) as client:
        sent = [shop.app.send_task("celery_task.describe", (f"mill {n}",)) for n in range(6)]
        for task in sent:
            assert client.result(task.get(timeout=60), timeout_s=60).text
    shop.client.cache_clear()
    shop.app.close()
