"""The README and the first page work: their Python and their commands run on a live stack."""

from __future__ import annotations

import http.client
import json
import re
import shlex
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from standardwebhooks.webhooks import Webhook

from batchmill.producer import new_secret
from batchmill.producer.store.job_store import JobStore

from ..structure.public_interface import ROOT
from ..support.processes import (
    CLI,
    STUB,
    accepts,
    free_port,
    process,
    ready_worker,
    run,
    wait_until,
)

PAGES = [ROOT / "README.md", ROOT / "docs" / "getting-started.md"]
TEXT = "\n".join(page.read_text() for page in PAGES)


def block(language: str, containing: str) -> str:
    """Return the only fenced block of a language that contains some text."""
    (found,) = [text for text in blocks(language) if containing in text]
    return found


def blocks(language: str) -> list[str]:
    """Return every fenced block of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)


@pytest.fixture
def live_stack(redis_url: str, tmp_path: Path) -> Iterator[dict[str, str]]:
    """Start a broker and a worker; yield the environment that reaches them."""
    store = JobStore.from_url(redis_url)
    with ready_worker(redis_url, store, tmp_path):
        yield {**STUB, "BATCHMILL_BROKER_URL": redis_url}
    store.close()


def test_the_examples_of_both_clients_print_a_text(live_stack: dict[str, str]) -> None:
    for containing in ("client = Client()", "AsyncClient"):
        assert run("-c", block("python", containing), environment=live_stack).strip() != ""


def test_the_shell_examples_work_as_typed(live_stack: dict[str, str], tmp_path: Path) -> None:
    job_id = ""
    commands = []
    (tmp_path / "requests.jsonl").write_text('{"prompt": "Once", "model": "demo"}\n')
    shell = "".join(text for text in blocks("sh") if "batchmill submit" in text)
    for line in shell.replace("\\\n", " ").splitlines():
        program, *words = shlex.split(line, comments=True)
        assert program == "batchmill"
        words = [job_id if word == "ID" else word for word in words]
        output = run(*CLI, *words, environment=live_stack, cwd=tmp_path)
        if words[0] == "submit" and not {"--wait", "--stream"} & set(words):
            job_id = output.strip()
        commands.append(words[0])
    assert {"submit", "result", "status"} <= set(commands)


def test_the_webhook_receiver_accepts_only_signed_events(tmp_path: Path) -> None:
    source = block("python", "verify_webhook")
    assert source.count("9000") == 1
    port, secret, log = free_port(), new_secret(), tmp_path / "receiver.log"
    environment = {**STUB, "BATCHMILL_WEBHOOK_SECRET": secret}
    program = source.replace("9000", str(port))
    with process("-c", program, environment=environment, log=log) as receiver:

        def listens() -> bool:
            assert receiver.poll() is None, log.read_text()
            return accepts(port)

        wait_until(listens, "starting the receiver")
        assert post_event(port, "gen_true", secret) == 204
        assert post_event(port, "gen_false", new_secret()) == 401
    assert "generation.completed gen_true" in log.read_text()
    assert "gen_false" not in log.read_text()


def post_event(port: int, job_id: str, secret: str) -> int:
    """Send an event signed by an independent library; return the status of the response."""
    now = datetime.now(UTC)
    data = {"id": job_id, "status": "completed"}
    body = json.dumps({"type": "generation.completed", "timestamp": now.isoformat(), "data": data})
    headers = {
        "webhook-id": "evt_1",
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": Webhook(secret).sign("evt_1", now, body),
    }
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("POST", "/", body, headers)
        return connection.getresponse().status
    finally:
        connection.close()


def test_the_engine_example_generates_with_the_demo_model() -> None:
    source = block("python", "EngineConfig(")
    num_prompts = len(re.findall(r'"[^"]+"', source.split("prompts = [")[1].split("]")[0]))
    lines = run("-c", source, environment=STUB).splitlines()
    assert len([line for line in lines if re.fullmatch(r"'.+' (stop|length)", line)]) == num_prompts
