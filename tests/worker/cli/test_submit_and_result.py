"""Commands of backends, `submit`, `result` and `status`; errors and help of every command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import pytest

from batchmill.producer.store.job_store import JobStore

from ..command_line import COMMAND, call, complete, error_of, run

COMMANDS = (
    ["demo"],
    ["up"],
    ["worker"],
    ["deliver"],
    ["webhook-secret"],
    ["submit"],
    ["result"],
    ["list"],
    ["progress"],
    ["cancel"],
    ["retry"],
    ["forget"],
    ["stream"],
    ["bulk"],
    ["status"],
    ["doctor"],
    ["dead-letters", "list"],
    ["dead-letters", "show"],
    ["dead-letters", "retry"],
    ["dead-letters", "drop"],
    ["tenants", "list"],
    ["tenants", "show"],
    ["tenants", "set"],
    ["tenants", "unset"],
    ["tenants", "window"],
    ["config", "show"],
    ["webhooks", "list"],
    ["webhooks", "redeliver"],
    ["webhooks", "show"],
    ["webhooks", "endpoints"],
    ["webhooks", "replay"],
    ["webhooks", "enable"],
    ["webhooks", "disable"],
    ["pause", "list"],
    ["pause", "queue"],
    ["resume", "endpoint"],
    ["webhooks", "test"],
    ["bench", "engine"],
    ["bench", "queue"],
)


def document(store: JobStore, job_id: str) -> dict[str, Any]:
    record = store.load(job_id)
    assert record is not None
    data: dict[str, Any] = json.loads(record.document)
    return data


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_of_every_command_has_an_example_and_json(command: list[str]) -> None:
    answer = call(*command, "--help")
    assert answer.returncode == 0
    assert "Example" in answer.stdout
    assert f"batchmill {command[0]}" in answer.stdout
    assert "--json" in answer.stdout


def test_help_lists_every_command_and_imports_nothing_heavy() -> None:
    program = (
        "import sys; sys.argv = ['batchmill', '--help']\n"
        "from batchmill.worker.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'celery', 'transformers', 'pydantic', 'redis', 'flower', 'h11'}\n"
        "print('heavy:', sorted(heavy & set(sys.modules)))"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert answer.stdout.splitlines()[-1] == "heavy: []"
    for command in COMMANDS:
        assert command[0] in answer.stdout


def test_help_imports_no_library_of_the_work() -> None:
    imported = run("--help", PYTHONPROFILEIMPORTTIME="1").stderr
    names = {line.rpartition("|")[2].strip() for line in imported.splitlines()}
    assert "typer" in names
    heavy = {
        "celery",
        "jinja2",
        "pyarrow",
        "pydantic",
        "redis",
        "structlog",
        "torch",
        "transformers",
    }
    assert names & heavy == set()


def test_submitted_job_has_the_given_fields(broker: dict[str, str], store: JobStore) -> None:
    options = "--max-tokens 9 --temperature 0.5 --top-p 0.9 --top-k 3 --seed 7 --priority high"
    answer = call(
        *("submit", "Once upon a time", "--raw", *options.split()),
        *("--stop", "END", "--stop", "\n\n", "--metadata", "order=17", "--ttl-s", "600"),
        *("--webhook", "https://example.com/hook", "--param", "ignore_eos=true"),
        **broker,
    )
    assert answer.returncode == 0, answer.stderr
    job = document(store, answer.stdout.strip())
    assert job["prompt"] == "Once upon a time"
    assert (job["max_tokens"], job["temperature"], job["top_p"], job["top_k"]) == (9, 0.5, 0.9, 3)
    assert (job["seed"], job["priority"], job["stop"]) == (7, "high", ["END", "\n\n"])
    assert job["metadata"] == {"order": "17"}
    assert job["ttl_s"] == 600
    assert job["webhook"] == "https://example.com/hook"
    assert job["ignore_eos"] is True


def test_prompt_is_read_from_stdin(broker: dict[str, str], store: JobStore) -> None:
    answer = run("submit", stdin="piped in\n", **broker)
    expected = [{"role": "user", "content": "piped in"}]
    assert document(store, answer.stdout.strip())["messages"] == expected


def test_a_typed_text_is_a_chat_with_its_system_message(
    broker: dict[str, str], store: JobStore
) -> None:
    answer = call("submit", "Hello!", "--system", "Be brief.", **broker)
    expected = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello!"},
    ]
    job = document(store, answer.stdout.strip())
    assert job["messages"] == expected
    assert "prompt" not in job


@pytest.mark.parametrize(
    "options",
    [
        ["x", "--raw", "--system", "s"],
        ["--messages", "[]", "--system", "s"],
        ["--messages", "[]", "--raw"],
        ["x", "--deadline", "soon"],
        ["x", "--deadline", "99999999999999w"],
    ],
)
def test_options_that_contradict_each_other_are_refused(
    broker: dict[str, str], options: list[str]
) -> None:
    answer = call("submit", *options, "--json", **broker)
    assert (answer.returncode, error_of(answer)["code"]) == (2, "usage")


@pytest.mark.parametrize(
    ("text", "expected_s"), [("90s", 90), ("2h", 7200), ("1.5d", 129_600), (None, 3600)]
)
def test_a_deadline_is_a_time_or_a_distance(
    broker: dict[str, str], store: JobStore, text: str | None, expected_s: float
) -> None:
    text = text or f"{int(time.time()) + 3600}"
    answer = call("submit", "x", "--deadline", text, **broker)
    deadline = datetime.fromisoformat(document(store, answer.stdout.strip())["deadline"])
    assert deadline.timestamp() - time.time() == pytest.approx(expected_s, abs=30)


def test_a_stream_is_printed_until_the_job_has_ended(
    broker: dict[str, str], store: JobStore
) -> None:
    arguments = ["submit", "x", "--stream", "--timeout-s", "30", "--idempotency-key", "k"]
    job_id = call("submit", "x", "--idempotency-key", "k", **broker).stdout.strip()
    complete(store, job_id, "streamed text")
    assert call(*arguments, **broker).stdout == "streamed text\n"
    pieces = call(*arguments, "--json", **broker).stdout.splitlines()
    assert "".join(json.loads(piece)["text"] for piece in pieces) == "streamed text"


def test_every_command_is_under_a_heading_of_the_help() -> None:
    result = call("--help")
    assert "Commands" not in [line.strip("╭─╮ ") for line in result.stdout.splitlines()]
    assert "Files and batches of jobs" in result.stdout


def test_chat_is_submitted_as_json(broker: dict[str, str], store: JobStore) -> None:
    messages = [{"role": "user", "content": "Hello!"}]
    answer = call("submit", "--messages", json.dumps(messages), "--json", **broker)
    assert document(store, json.loads(answer.stdout)["id"])["messages"] == messages


def test_same_idempotency_key_returns_the_same_job(broker: dict[str, str]) -> None:
    answers = [call("submit", "x", "--idempotency-key", "k", **broker) for _ in range(2)]
    assert answers[0].stdout == answers[1].stdout


def test_broker_flag_wins_over_the_environment(redis_url: str, store: JobStore) -> None:
    wrong = {"BATCHMILL_BROKER_URL": "redis://127.0.0.1:1/0"}
    answer = call("submit", "x", "--broker-url", redis_url, **wrong)
    messages = document(store, answer.stdout.strip())["messages"]
    assert messages == [{"role": "user", "content": "x"}]


def test_plain_http_webhook_needs_its_flag(broker: dict[str, str], store: JobStore) -> None:
    arguments = ["submit", "x", "--webhook", "http://127.0.0.1:1/hook", "--json"]
    allow = ["--webhook-allow-http", "true", "--webhook-allow-ports", "1"]
    allow += ["--webhook-allow-networks", "127.0.0.0/8"]
    refused = run(*arguments, **broker)
    assert refused.returncode == 4
    assert error_of(refused)["param"] == "webhook"
    taken = run(*arguments, *allow, **broker)
    assert document(store, json.loads(taken.stdout)["id"])["webhook"].startswith("http://")


def test_result_of_a_finished_job_is_its_text(broker: dict[str, str], store: JobStore) -> None:
    job_id = run("submit", "x", **broker).stdout.strip()
    complete(store, job_id, "grüße\n")
    answer = run("result", job_id, **broker)
    assert (answer.returncode, answer.stdout) == (0, "grüße\n\n")
    data = json.loads(run("result", job_id, "--json", **broker).stdout)
    assert (data["text"], data["finish_reason"], data["token_ids"]) == ("grüße\n", "stop", [5, 6])


def test_submit_that_waits_prints_the_text(broker: dict[str, str], store: JobStore) -> None:
    process = subprocess.Popen(
        [*COMMAND, "submit", "x", "--wait", "--timeout-s", "30"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **broker},
    )
    deadline = time.monotonic() + 60
    while not (ids := cast("list[bytes]", store.client.keys("batchmill:job:*"))):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    complete(store, ids[0].decode().removeprefix("batchmill:job:"))
    assert process.communicate(timeout=60)[0] == "an answer\n"
    assert process.returncode == 0


def test_status_of_a_job_shows_its_state(broker: dict[str, str], store: JobStore) -> None:
    job_id = call("submit", "x", **broker).stdout.strip()
    assert "queued" in call("status", job_id, **broker).stdout
    complete(store, job_id)
    data = json.loads(call("status", job_id, "--json", **broker).stdout)
    assert (data["id"], data["state"], data["output_tokens"]) == (job_id, "completed", 2)


def test_cancelled_job_stays_cancelled(broker: dict[str, str]) -> None:
    job_id = call("submit", "x", **broker).stdout.strip()
    answer = json.loads(call("cancel", job_id, "--json", **broker).stdout)
    assert answer["outcome"] == "cancelled"
    again = call("cancel", job_id, "--json", **broker)
    assert again.returncode == 0
    assert json.loads(again.stdout)["outcome"] == "already_terminal"
    result = call("result", job_id, "--json", **broker)
    assert (result.returncode, error_of(result)["code"]) == (6, "cancelled")


@pytest.mark.parametrize(
    ("arguments", "exit_code", "code"),
    [
        (["submit", "x", "--max-tokens", "0"], 4, "invalid_request"),
        (["submit", "x", "--param", "num_beams=2"], 4, "unsupported_parameter"),
        (["submit", "x", "--param", "no_such_field=1"], 4, "invalid_request"),
        (["submit", "x", "--messages", "[]"], 2, "usage"),
        (["submit", "--messages", "not json"], 2, "usage"),
        (["submit", "x", "--metadata", "no-value"], 2, "usage"),
        (["submit", "x", "--max-tokens", "many"], 2, "usage"),
        (["no-such-command"], 2, "usage"),
        (["status", "--broker-url", "http://127.0.0.1/"], 8, "invalid_broker_url"),
        (["submit", "x", "--broker-url", "redis-cluster://a"], 8, "invalid_broker_url"),
        (["status", "gen_unknown"], 5, "unknown_job"),
        (["result", "gen_unknown"], 5, "unknown_job"),
        (["cancel", "gen_unknown"], 5, "unknown_job"),
        (["webhooks", "redeliver", "evt_unknown"], 5, "unknown_event"),
        (["webhooks", "show", "evt_unknown"], 5, "unknown_event"),
        (["webhooks", "enable", "https://example.com/"], 5, "unknown_endpoint"),
        (["webhooks", "test", "https://example.com/"], 8, "no_webhook_secret"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_each_kind_of_error_has_its_code_and_exit_code(
    broker: dict[str, str], tmp_path: Path, arguments: list[str], exit_code: int, code: str
) -> None:
    broker |= {"BATCHMILL_STATE_DIR": str(tmp_path)}  # without the secret of `batchmill up`
    answer = call(*arguments, "--json", **broker)
    assert answer.returncode == exit_code
    assert error_of(answer)["code"] == code
    text = call(*arguments, **broker)
    assert text.returncode == exit_code
    assert text.stdout == ""
    assert "Traceback" not in text.stderr


def test_unreachable_broker_is_reported_without_its_password() -> None:
    url = "redis://:hunter2@127.0.0.1:1/0"
    answer = call("status", "--json", "--broker-url", url)
    assert answer.returncode == 3
    assert error_of(answer)["code"] == "broker_unavailable"
    assert "hunter2" not in answer.stderr


def test_missing_broker_says_how_to_start_one(tmp_path: Any) -> None:
    answer = call("status", BATCHMILL_RUNTIME_DIR=str(tmp_path))
    assert answer.returncode == 3
    assert "batchmill up" in answer.stderr


def test_wait_that_takes_too_long_has_its_own_exit_code(broker: dict[str, str]) -> None:
    job_id = call("submit", "x", **broker).stdout.strip()
    answer = call("result", job_id, "--timeout-s", "0", "--json", **broker)
    assert (answer.returncode, error_of(answer)["code"]) == (7, "timeout")
