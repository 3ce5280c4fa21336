"""Every receiver that we show, in each language: `batchmill webhooks test` succeeds against it."""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from batchmill.producer.webhook.signature import new_secret, signature_headers
from batchmill.worker.webhooks.local_receiver import LOOPBACK

from ..structure.public_interface import ROOT
from ..support.processes import accepts, free_port, wait_until
from ..worker.command_line import call

EXAMPLES = ROOT / "examples"
_DJANGO = """
from django.conf import settings
settings.configure(ROOT_URLCONF="django_view", ALLOWED_HOSTS=["*"], SECRET_KEY="x", USE_TZ=True)
import os, django; django.setup()
from django.core.wsgi import get_wsgi_application
from wsgiref.simple_server import make_server
make_server("127.0.0.1", int(os.environ["PORT"]), get_wsgi_application()).serve_forever()
"""


def _needs_module(*names: str) -> None:
    for name in names:
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")


def _needs_program(name: str) -> None:
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed")


@dataclass(frozen=True)
class _Program:
    """How to start a receiver that listens at PORT."""

    command: list[str]
    folder: Path = EXAMPLES


def _readme(folder: Path, port: int) -> _Program:
    text = (ROOT / "README.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    (source,) = [block for block in blocks if "verify_webhook" in block]
    return _Program([sys.executable, "-c", source.replace("9000", str(port))])


def _python(folder: Path, port: int) -> _Program:
    return _Program([sys.executable, "webhook_receiver.py"])


def _fastapi(folder: Path, port: int) -> _Program:
    _needs_module("fastapi", "uvicorn")
    return _Program([sys.executable, "-m", "uvicorn", "fastapi_app:app", "--port", str(port)])


def _django(folder: Path, port: int) -> _Program:
    _needs_module("django")
    return _Program([sys.executable, "-c", _DJANGO])


def _go(folder: Path, port: int) -> _Program:
    _needs_program("go")
    program = folder / "receiver"
    build = ["go", "build", "-o", str(program), "webhook_receiver.go"]
    subprocess.run(build, cwd=EXAMPLES / "go", check=True, timeout=240)
    return _Program([str(program)])


def _ruby(folder: Path, port: int) -> _Program:
    _needs_program("ruby")
    if subprocess.run(["ruby", "-e", "require 'webrick'"], capture_output=True).returncode:
        pytest.skip("webrick is not installed: gem install webrick")
    return _Program(["ruby", "webhook_receiver.rb"], EXAMPLES / "ruby")


def _node(folder: Path, port: int) -> _Program:
    return _Program(["node", "webhook_receiver.mjs"], folder)


@dataclass
class _Receiver:
    port: int
    secret: str
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    def post(self, body: str, secret: str | None = None, event_id: str = "evt_1") -> int:
        """Send a signed event; return the status of the response."""
        data, now_s = body.encode(), int(time.time())
        signed = signature_headers(event_id, now_s, data, secrets=[secret or self.secret])
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request("POST", "/hook", data, dict(signed))
            return connection.getresponse().status
        finally:
            connection.close()


@contextmanager
def _running(program: _Program, port: int, log: Path, redis_url: str) -> Iterator[_Receiver]:
    secret = new_secret()
    environment = {
        **os.environ,
        "PORT": str(port),
        "BATCHMILL_WEBHOOK_SECRET": secret,
        "BATCHMILL_BROKER_URL": redis_url,
        "PYTHONPATH": os.pathsep.join([str(EXAMPLES), os.environ.get("PYTHONPATH", "")]),
        "PYTHONUNBUFFERED": "1",
    }
    with log.open("wb") as output:
        child = subprocess.Popen(
            program.command, cwd=program.folder, env=environment, stdout=output, stderr=output
        )
    try:

        def listens() -> bool:
            assert child.poll() is None, log.read_text()
            return accepts(port)

        wait_until(listens, "starting the receiver")
        yield _Receiver(port, secret, log)
    finally:
        child.kill()
        child.wait()


_RECEIVERS: dict[str, Callable[[Path, int], _Program]] = {
    "README": _readme,
    "webhook_receiver.py": _python,
    "FastAPI": _fastapi,
    "Django": _django,
    "Go": _go,
    "Ruby": _ruby,
    "Node": _node,
}
_DROP_REPEATS = ("webhook_receiver.py", "Go", "Ruby", "Node")


@pytest.mark.parametrize("name", _RECEIVERS)
def test_receiver_takes_test_events_and_refuses_what_is_not_signed(
    name: str, tmp_path: Path, redis_url: str, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue("node_examples") if name == "Node" else tmp_path
    port = free_port()
    program = _RECEIVERS[name](folder, port)
    with _running(program, port, tmp_path / "receiver.log", redis_url) as receiver:
        settings = {
            "BATCHMILL_WEBHOOK_SECRET": receiver.secret,
            "BATCHMILL_WEBHOOK_ALLOW_HTTP": "true",
            "BATCHMILL_WEBHOOK_ALLOW_PORTS": str(port),
            "BATCHMILL_WEBHOOK_ALLOW_NETWORKS": LOOPBACK,
        }
        tested = call("webhooks", "test", receiver.url, **settings)
        assert tested.returncode == 0, tested.stdout + receiver.log.read_text()
        assert " delivered after " in tested.stdout

        event = {
            "type": "generation.completed",
            "timestamp": "2026-01-31T12:00:00.000Z",
            "data": {"id": "gen_1", "status": "completed", "metadata": {"stadt": "Köln"}},
        }
        body = json.dumps(event, ensure_ascii=False)
        assert receiver.post(body) // 100 == 2
        assert receiver.post(body) // 100 == 2
        assert receiver.post(body + " ", new_secret()) == 401
        assert receiver.post(body.replace("gen_1", "gen_2"), new_secret(), "evt_2") == 401
        lines = receiver.log.read_text().splitlines()
    assert [line for line in lines if line.startswith("webhook.test evt_test_")]
    handled = [line for line in lines if line.startswith("generation.completed gen_1")]
    assert len(handled) == (1 if name in _DROP_REPEATS else 2)
    assert "gen_2" not in "".join(lines)
