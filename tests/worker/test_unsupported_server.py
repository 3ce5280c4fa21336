"""Programs that serve for long end at once if their broker can never serve them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from batchmill.producer.webhook.signature import new_secret

from ..support.greeting_server import GreetingServer

_CLI = "batchmill.worker.cli"
PROGRAMS = {
    "worker": (_CLI, "worker"),
    "deliver": (_CLI, "deliver"),
    "gateway": (_CLI, "gateway"),
    "celery worker": ("celery", "-A", "batchmill.worker.app", "worker"),
}


@pytest.fixture(params=[("redis", "6.2.14", "standalone"), ("valkey", "8.1.0", "cluster")])
def refused_url(request: pytest.FixtureRequest) -> Iterator[str]:
    server = GreetingServer(*request.param)
    yield server.url
    server.close()


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_ends_and_names_a_server_that_is_not_supported(
    program: str, refused_url: str, tmp_path: Path
) -> None:
    environment = os.environ | {
        "BATCHMILL_BROKER_URL": refused_url,
        "BATCHMILL_ENGINE": "stub",
        "BATCHMILL_MODEL": "demo",
        "BATCHMILL_WEBHOOK_SECRET": new_secret(),
        "BATCHMILL_GATEWAY_FILES_URL": str(tmp_path),
    }
    command = [sys.executable, "-m", *PROGRAMS[program]]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=90)
    assert ended.returncode != 0
    assert "needs Redis 7.0 or Valkey 7.2" in ended.stderr or "cluster mode" in ended.stderr
    assert "Traceback" not in ended.stderr
