"""Our signatures, verified by the Standard Webhooks library for JavaScript."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from batchmill.producer.webhook import signature_headers

from .deliveries import OLD_SECRET, SECRET

_PACKAGE = "standardwebhooks@1.0.0"
_VERIFY = """
const { Webhook } = require("standardwebhooks");
const [secret, body, headers] = process.argv.slice(1);
const event = new Webhook(secret).verify(body, JSON.parse(headers));
console.log(event.type);
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the library is installed."""
    if shutil.which("npm") is None or shutil.which("node") is None:
        pytest.skip("node and npm are not installed")
    folder = tmp_path_factory.mktemp("javascript")
    command = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts", _PACKAGE]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    if done.returncode != 0:
        pytest.skip(f"npm cannot install {_PACKAGE}: {done.stderr.strip()[-200:]}")
    return folder


def verify(library: Path, secret: str, body: str, headers: str) -> subprocess.CompletedProcess[str]:
    command = ["node", "-e", _VERIFY, secret, body, headers]
    return subprocess.run(command, cwd=library, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("secret", [SECRET, OLD_SECRET])
def test_javascript_library_verifies_our_signatures(library: Path, secret: str) -> None:
    body = '{"type":"generation.completed","data":{"text":"ü"}}'
    headers = signature_headers(
        "evt_1", int(time.time()), body.encode(), secrets=[SECRET, OLD_SECRET]
    )
    text = json.dumps(headers)
    assert verify(library, secret, body, text).stdout.strip() == "generation.completed"
    changed = verify(library, secret, body + " ", text)
    assert changed.returncode != 0
    assert "No matching signature" in changed.stderr
