"""Our signatures, verified by the Standard Webhooks library for JavaScript."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import pytest

from batchmill.producer.webhook.signature import signature_headers

from ..webhook_deliverers import OLD_SECRET, SECRET

_VERIFY = """
const { Webhook } = require("standardwebhooks");
const [secret, body, headers] = process.argv.slice(1);
const event = new Webhook(secret).verify(body, JSON.parse(headers));
console.log(event.type);
"""


def verify(
    node_examples: Path, secret: str, body: str, headers: str
) -> subprocess.CompletedProcess[str]:
    command = ["node", "--input-type=commonjs", "-e", _VERIFY, secret, body, headers]
    return subprocess.run(command, cwd=node_examples, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("secret", [SECRET, OLD_SECRET])
def test_javascript_library_verifies_our_signatures(node_examples: Path, secret: str) -> None:
    body = '{"type":"generation.completed","data":{"text":"ü"}}'
    headers = signature_headers(
        "evt_1", int(time.time()), body.encode(), secrets=[SECRET, OLD_SECRET]
    )
    text = json.dumps(headers)
    assert verify(node_examples, secret, body, text).stdout.strip() == "generation.completed"
    changed = verify(node_examples, secret, body + " ", text)
    assert changed.returncode != 0
    assert "No matching signature" in changed.stderr
