"""Batches with real workers, deliverers and the command line."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.webhooks import BatchCompletedWebhookEvent

from batchmill.producer import Client
from batchmill.worker.webhooks.local_receiver import LOOPBACK, ReceivedRequest, WebhookReceiver

from ...contract.test_schemas import is_valid
from ..cli.bulk_files import FAST, text_of, write_lines
from ..command_line import call, error_of
from ..conftest import Mill
from ..webhook_deliverers import SECRET, Deliverers, verify

LOCAL = {
    "BATCHMILL_WEBHOOK_ALLOW_HTTP": "1",
    "BATCHMILL_WEBHOOK_ALLOW_PORTS": "1024-65535",
    "BATCHMILL_WEBHOOK_ALLOW_NETWORKS": LOOPBACK,
}


@pytest.fixture
def deliverers(redis_url: str) -> Iterator[Deliverers]:
    deliverers = Deliverers(redis_url)
    yield deliverers
    deliverers.close()


def requests(number: int) -> list[dict[str, Any]]:
    """Return lines in OpenAI's batch format."""
    return [
        {
            "custom_id": f"c{i}",
            "method": "POST",
            "url": "/v1/completions",
            "body": {"prompt": f"p{i}", "seed": 7, "max_tokens": 3},
        }
        for i in range(number)
    ]


def event_of(request: ReceivedRequest) -> Any:
    """Return the event of a request, after checking its signature and its schema."""
    verify(request)
    event = json.loads(request.body)
    assert is_valid("batch-event.schema.json", event)
    return event


def test_a_file_becomes_a_batch_and_its_end_is_reported_once(
    mill: Mill, deliverers: Deliverers
) -> None:
    lines = [*requests(30), {"custom_id": "wrong", "prompt": ""}]
    source = write_lines(mill.folder / "in.jsonl", lines)
    errors = mill.folder / "errors.jsonl"
    with WebhookReceiver() as receiver:
        options = ("--webhook", receiver.url, "--metadata", "order=7", "--errors", str(errors))
        broker = ("--broker-url", mill.url)
        answer = call("batch", "create", str(source), *options, *broker, "--json", **LOCAL)
        assert answer.returncode == 0, answer.stderr
        created = json.loads(answer.stdout)
        assert is_valid("batch.schema.json", created)
        assert created["request_counts"] == {"total": 31, "completed": 0, "failed": 1}
        refused = json.loads(errors.read_text())
        assert (refused["custom_id"], refused["error"]["code"]) == ("wrong", "invalid_request")
        mill.start_worker(stub=FAST)
        deliverers.start()
        out = mill.folder / "out.jsonl"
        answer = call("batch", "results", created["id"], "-o", str(out), *broker)
        assert answer.returncode == 0, answer.stderr
        assert receiver.wait_for(1, timeout_s=60)
        event = event_of(receiver.requests[0])
        client = openai.OpenAI(api_key="none", webhook_secret=SECRET)
        known = client.webhooks.unwrap(receiver.requests[0].body, receiver.requests[0].headers)
    assert isinstance(known, BatchCompletedWebhookEvent)
    assert (event["type"], event["data"]["id"]) == ("batch.completed", created["id"])
    assert known.data.id == created["id"]
    assert event["data"]["request_counts"] == {"total": 31, "completed": 30, "failed": 1}
    assert event["data"]["metadata"] == {"order": "7"}
    answers = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["custom_id"] for line in answers] == [f"c{i}" for i in range(30)]
    assert [line["response"]["body"]["choices"][0]["text"] for line in answers] == [
        text_of(f"p{i}", 3) for i in range(30)
    ]
    shown = call("batch", "show", created["id"], *broker)
    assert "completed" in shown.stdout
    listed = json.loads(call("batch", "list", "--json", *broker).stdout)["batches"]
    assert [batch["status"] for batch in listed] == ["completed"]


def test_a_batch_is_cancelled_while_it_runs(mill: Mill, deliverers: Deliverers) -> None:
    mill.start_worker(stub={"max_num_seqs": 2}, sweep_interval_s=0.2)
    source = write_lines(mill.folder / "in.jsonl", [{"prompt": "x", "max_tokens": 2000}] * 5)
    broker = ("--broker-url", mill.url)
    with WebhookReceiver() as receiver:
        deliverers.start()
        options = ("--webhook", receiver.url, "--webhook-event", "cancelled")
        batch_id = call("batch", "create", str(source), *options, *broker, **LOCAL).stdout.strip()
        mill.wait_for(lambda: mill.store.counts().in_progress > 0, "a job to run")
        answer = call("batch", "cancel", batch_id, "--json", *broker)
        assert json.loads(answer.stdout)["status"] in ("cancelling", "cancelled")
        answer = call("batch", "results", batch_id, *broker)
        assert answer.returncode == 6
        assert [json.loads(line)["error"]["code"] for line in answer.stdout.splitlines()] == [
            "cancelled"
        ] * 5
        assert receiver.wait_for(1, timeout_s=60)
        event = event_of(receiver.requests[0])
    assert event["type"] == "batch.cancelled"
    assert event["data"]["request_counts"] == {"total": 5, "completed": 0, "failed": 5}


def test_counts_are_exact_when_a_worker_is_killed(mill: Mill) -> None:
    first = mill.start_worker("w1", stub={"step_time_s": 0.005, "max_num_seqs": 32})
    with Client(mill.url) as client:
        batch = client.create_batch({"prompt": f"p{i}", "max_tokens": 20} for i in range(200))
        mill.wait_for(lambda: client.batch(batch.id).request_counts.completed >= 40, "forty ends")
        first.end(signal.SIGKILL)
        mill.start_worker("w2", stub=FAST)
        entries = list(client.batch_results(batch.id, timeout_s=60))
        done = client.batch(batch.id)
    assert len({entry.job.id for entry in entries}) == len(entries) == 200
    assert (done.status, done.request_counts.completed) == ("completed", 200)
    assert mill.store.counts().totals["completed"] == 200


@pytest.mark.parametrize(
    ("arguments", "code", "exit_code"),
    [
        (["show", "batch_unknown"], "unknown_batch", 5),
        (["cancel", "batch_unknown"], "unknown_batch", 5),
        (["results", "batch_unknown"], "unknown_batch", 5),
        (["create", "missing.jsonl"], "bulk_file", 2),
        (["create", "in.jsonl", "--webhook-event", "started"], "invalid_request", 4),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_commands_have_distinct_errors(
    redis_url: str, tmp_path: Path, arguments: list[str], code: str, exit_code: int
) -> None:
    write_lines(tmp_path / "in.jsonl", requests(1))
    words = [str(tmp_path / word) if word.endswith(".jsonl") else word for word in arguments]
    answer = call("batch", *words, "--json", "--broker-url", redis_url)
    assert (answer.returncode, error_of(answer)["code"]) == (exit_code, code)


def test_a_wrong_line_fails_the_batch_by_name(redis_url: str, tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [*requests(2), {"prompt": ""}])
    answer = call("batch", "create", str(source), "--json", "--broker-url", redis_url)
    assert answer.returncode == 4
    assert error_of(answer)["param"] == "prompt"
    with Client(redis_url) as client:
        [batch] = client.batches()
    shown = call("batch", "show", batch.id, "--broker-url", redis_url)
    assert "(line 3)" in shown.stdout
