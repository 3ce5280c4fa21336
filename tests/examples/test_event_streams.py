"""The web examples on a real server, with a real worker: text, server-sent events and errors."""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import re
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis

from batchmill.producer import Client, JobState
from batchmill.producer.protocol import keys
from batchmill.producer.store.job_store import JobStore

from ..conftest import RedisServer
from ..structure.public_interface import ROOT
from ..support.processes import accepts, free_port, process, ready_worker, wait_until

EXAMPLES = ROOT / "examples"
#: 48 tokens, as many as an example asks for, take about two seconds and come in several pieces.
SLOW = {"BATCHMILL_STUB": '{"step_time_s": 0.04}'}
FRAMEWORKS = {"asgi_app": "uvicorn", "fastapi_app": "fastapi", "django_site": "django"}
_DJANGO_SITE = """
from django.conf import settings
settings.configure(ROOT_URLCONF="django_view", ALLOWED_HOSTS=["*"], SECRET_KEY="x", USE_TZ=True)
from django.core.asgi import get_asgi_application
app = get_asgi_application()
"""
#: A text that no response may quote.
CANARY = "canary-4711"


def _is_installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


every_example = pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name,
            marks=pytest.mark.skipif(
                not _is_installed(package), reason=f"{package} is not installed"
            ),
        )
        for name, package in FRAMEWORKS.items()
    ],
)


@dataclass
class Event:
    """One server-sent event."""

    name: str
    data: Any
    id: str | None = None


class Site:
    """One example, served by uvicorn."""

    def __init__(self, name: str, port: int) -> None:
        self._is_django = name == "django_site"
        self._takes_text = name == "asgi_app"
        self._port = port

    def call(
        self, method: str, path: str, body: bytes = b"", kind: str = "application/json"
    ) -> tuple[int, bytes, dict[str, str]]:
        """Send a request; return the status, the body and the headers of the response."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        try:
            connection.request(method, path, body, {"Content-Type": kind})
            response = connection.getresponse()
            headers = {key.lower(): value for key, value in response.getheaders()}
            return response.status, response.read(), headers
        finally:
            connection.close()

    def submit(self, prompt: str) -> tuple[int, bytes, dict[str, str]]:
        """Submit a prompt in the form that the example takes."""
        if self._takes_text:
            return self.call("POST", "/jobs", prompt.encode(), "text/plain")
        if self._is_django:
            form = f"prompt={prompt}".encode()
            return self.call("POST", "/jobs", form, "application/x-www-form-urlencoded")
        return self.call("POST", "/jobs", json.dumps({"prompt": prompt}).encode())

    @contextmanager
    def events(self, job_id: str, last_event_id: str | None = None) -> Iterator[Iterator[Event]]:
        """Yield the events of a job as they arrive; the connection is closed after the block."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        headers = {} if last_event_id is None else {"Last-Event-ID": last_event_id}
        connection.request("GET", f"/jobs/{job_id}/events", headers=headers)
        response = connection.getresponse()
        try:
            assert response.status == 200, response.read()
            assert (response.getheader("content-type") or "").startswith("text/event-stream")
            yield parse(response)
        finally:
            response.close()
            connection.close()


def parse(response: http.client.HTTPResponse) -> Iterator[Event]:
    """Yield the events of a response; comments are left out."""
    fields: dict[str, str] = {}
    while line := response.readline():
        name, separator, value = line.decode().rstrip("\n").partition(": ")
        if separator and name:
            fields[name] = value
        elif not line.strip() and fields:
            yield Event(fields["event"], json.loads(fields["data"]), fields.get("id"))
            fields = {}


@contextmanager
def serve(
    name: str, url: str, folder: Path, further: dict[str, str] | None = None
) -> Iterator[Site]:
    """Serve an example with uvicorn."""
    (folder / "django_site.py").write_text(_DJANGO_SITE)
    port, log = free_port(), folder / "server.log"
    environment = {
        "BATCHMILL_BROKER_URL": url,
        "PYTHONPATH": os.pathsep.join([str(EXAMPLES), str(folder)]),
        **(further or {}),
    }
    command = ("-m", "uvicorn", f"{name}:app", "--port", str(port), "--log-level", "warning")
    with process(*command, environment=environment, log=log) as server:

        def listens() -> bool:
            assert server.poll() is None, log.read_text()
            return accepts(port)

        wait_until(listens, f"starting {name}")
        yield Site(name, port)


@pytest.fixture(scope="module")
def broker_url(
    _session_server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Run a slow worker for all tests here; yield the URL of its broker."""
    store = JobStore.from_url(_session_server.url)
    store.client.flushall()
    with ready_worker(_session_server.url, store, tmp_path_factory.mktemp("worker"), SLOW):
        yield _session_server.url
    store.close()


@every_example
def test_the_text_streams_and_a_reader_goes_on_where_it_stopped(
    name: str, broker_url: str, tmp_path: Path
) -> None:
    with serve(name, broker_url, tmp_path) as site:
        status, body, _ = site.submit("Once")
        assert status == 202, body
        job_id = json.loads(body)["id"]
        with site.events(job_id) as events:
            first = next(event for event in events if event.name == "text")
        with site.events(job_id, first.id) as events:
            rest = list(events)
        pieces = [event for event in rest if event.name == "text"]
        assert pieces, "the first piece was the whole text, so nothing was resumed"
        assert {event.name for event in rest} <= {"text", "waiting", "end"}
        assert rest[-1].name == "end"
        assert rest[-1].data["usage"]["completion_tokens"] == 48
        text = "".join(event.data["text"] for event in [first, *pieces])
        shown = json.loads(site.call("GET", f"/jobs/{job_id}")[1])
        assert (shown["state"], shown["text"]) == ("completed", text)
        with site.events(job_id, pieces[-1].id) as events:
            assert [event.name for event in events] == ["end"]


@every_example
def test_a_reader_that_goes_away_leaves_nothing_behind_and_the_job_goes_on(
    name: str, broker_url: str, tmp_path: Path
) -> None:
    with (
        serve(name, broker_url, tmp_path) as site,
        Client(broker_url) as client,
        redis.Redis.from_url(broker_url) as server,
    ):
        job = client.submit("Once", max_tokens=2000)
        channel = keys.channel(job.id)

        def num_readers() -> int:
            return int(server.pubsub_numsub(channel)[0][1])

        with site.events(job.id) as events:
            assert next(events).name == "text"
            assert num_readers() == 1
        wait_until(lambda: num_readers() == 0, "leaving the channel of the job")
        assert job.status().state is JobState.IN_PROGRESS
        job.cancel()


@every_example
def test_an_error_after_the_start_of_the_stream_is_an_event(
    name: str, broker_url: str, tmp_path: Path
) -> None:
    with serve(name, broker_url, tmp_path) as site, Client(broker_url) as client:
        job = client.submit("Once", max_tokens=2000)
        with site.events(job.id) as events:
            assert next(events).name == "text"
            job.cancel()
            *_, last = events
        assert (last.name, last.data) == ("failed", {"code": "cancelled", "retryable": False})


@every_example
def test_errors_are_responses_without_tracebacks_addresses_or_content(
    name: str, broker_url: str, tmp_path: Path
) -> None:
    full = {"BATCHMILL_MODEL": f"unserved-{name}", "BATCHMILL_MAX_QUEUE_DEPTH": "1"}
    with serve(name, broker_url, tmp_path, full) as site, Client(broker_url) as client:
        for path in ("/jobs/none", "/jobs/none/events"):
            status, body, _ = site.call("GET", path)
            assert (status, json.loads(body)) == (404, {"error": "unknown_job"})
        status, body, _ = site.submit("")
        assert (status, json.loads(body)["error"]) == (422, "invalid_request")
        waiting = client.job(json.loads(site.submit("Once")[1])["id"])
        status, body, headers = site.submit(CANARY)
        assert (status, json.loads(body)) == (503, {"error": "queue_full"})
        assert int(headers["retry-after"]) > 0
        with pytest.raises(AssertionError, match="invalid_query"), site.events(waiting.id, "1-x"):
            pass
        with site.events(waiting.id) as events:  # no text: it tells that the job waits
            assert next(events).data == {"jobs_before": 0, "eta_s": None}
        waiting.cancel()


@every_example
def test_a_broker_that_is_away_is_a_503(name: str, tmp_path: Path) -> None:
    nobody = {"BATCHMILL_BROKER_TIMEOUT_S": "1"}
    with serve(name, f"unix://{tmp_path}/nobody", tmp_path, nobody) as site:
        for status, body, headers in (
            site.submit(CANARY),
            site.call("GET", "/jobs/gen_1"),
            site.call("GET", "/jobs/gen_1/events"),
        ):
            assert (status, json.loads(body)) == (503, {"error": "broker_unavailable"})
            assert int(headers["retry-after"]) > 0


def test_the_page_shows_the_code_of_the_examples() -> None:
    page = (ROOT / "docs" / "web-services.md").read_text()
    sources = [
        (EXAMPLES / f"{name}.py").read_text()
        for name in ("fastapi_app", "django_view", "job_events")
    ]
    shown = re.findall(r"^```(?:python|js)\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    assert len(shown) == 3
    for block in shown:
        assert any(block in source or indented(block) in source for source in sources)


def indented(block: str) -> str:
    """Return a block as it stands in a docstring."""
    return textwrap.indent(block, "    ")


@pytest.mark.skipif(not _is_installed("fastapi"), reason="fastapi is not installed")
def test_the_fastapi_example_refuses_bodies_without_quoting_them(
    broker_url: str, tmp_path: Path
) -> None:
    bodies = (
        b'{"prompt": "' + CANARY.encode() + b'\\ud800"}',
        b'{"prompt": "x", "max_tokens": NaN}',
        b'{"prompt": "x", "max_tokens": 1e99}',
        b'{"prompt": "x", "canary-4711\\ud800": 1}',
        b'{"prompt": "x", "webhook": "https://canary-4711.example"}',
        b'{"prompt": ["canary-4711"]}',
        b'{"prompt": "canary-4711',
        b"\xff\xfecanary-4711",
        b"[" * 10_000,
        json.dumps({"prompt": CANARY * 2000}).encode(),
    )
    with serve("fastapi_app", broker_url, tmp_path) as site:
        for body in bodies:
            status, answer, _ = site.call("POST", "/jobs", body)
            assert status in (400, 422), (body[:60], answer[:200])
            assert CANARY.encode() not in answer
        long = json.dumps({"prompt": CANARY * 10_000}).encode()
        status, answer, _ = site.call("POST", "/jobs", long)
        assert status == 413
        assert CANARY.encode() not in answer
