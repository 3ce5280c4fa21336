"""The command line as a user meets it: through a process, against a real server."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from batchmill.producer.answers import Claim, DeadLetterKind, DeliveryOutcome, JobState
from batchmill.producer.store import JobStore
from batchmill.worker.cli import main

COMMAND = [sys.executable, "-m", "batchmill.worker.cli"]


def run(*arguments: str, stdin: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "COLUMNS": "200", "TERM": "dumb", **environment},
    )


@dataclass(frozen=True)
class Answer:
    returncode: int
    stdout: str
    stderr: str


Call = Callable[..., Answer]


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """As `run`, inside this process: most of a run's time is starting Python."""

    def call(*arguments: str, **environment: str) -> Answer:
        capsys.readouterr()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["batchmill", *arguments])
            for name, value in {"COLUMNS": "200", "TERM": "dumb", **environment}.items():
                patch.setenv(name, value)
            with pytest.raises(SystemExit) as ended:
                main()
        out, err = capsys.readouterr()
        return Answer(int(ended.value.code or 0), out, err)

    return call


@pytest.fixture
def broker(redis_url: str) -> dict[str, str]:
    return {"BATCHMILL_BROKER_URL": redis_url}


@pytest.fixture
def store(redis_url: str) -> Iterator[JobStore]:
    store = JobStore.from_url(redis_url)
    yield store
    store.close()


def document(store: JobStore, job_id: str) -> dict[str, Any]:
    record = store.load(job_id)
    assert record is not None
    data: dict[str, Any] = json.loads(record.document)
    return data


def complete(store: JobStore, job_id: str, text: str = "an answer") -> None:
    claim = store.claim(job_id, owner="w", lease_ms=60_000, identity="i")
    assert isinstance(claim, Claim)
    result = {"id": job_id, "model": "demo", "status": "completed", "text": text}
    store.complete(
        job_id,
        fence=claim.fence,
        state=JobState.COMPLETED,
        result=json.dumps(result | {"finish_reason": "stop"}),
        token_ids=[5, 6],
    )


def error_of(answer: subprocess.CompletedProcess[str] | Answer) -> dict[str, Any]:
    assert answer.stdout == ""
    error: dict[str, Any] = json.loads(answer.stderr)["error"]
    return error


COMMANDS = (
    ["demo"],
    ["up"],
    ["worker"],
    ["deliver"],
    ["webhook-secret"],
    ["submit"],
    ["result"],
    ["cancel"],
    ["status"],
    ["doctor"],
    ["dead-letters", "list"],
    ["config", "show"],
    ["webhooks", "list"],
    ["webhooks", "redeliver"],
)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_help_of_every_command_has_an_example_and_json(call: Call, command: list[str]) -> None:
    answer = call(*command, "--help")
    assert answer.returncode == 0
    assert "Example" in answer.stdout
    assert f"batchmill {command[0]}" in answer.stdout
    assert "--json" in answer.stdout


def test_help_lists_every_command_and_does_not_import_what_is_heavy() -> None:
    program = (
        "import sys; sys.argv = ['batchmill', '--help']\n"
        "from batchmill.worker.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'celery', 'transformers', 'pydantic', 'redis', 'flower', 'httpx2'}\n"
        "print('heavy:', sorted(heavy & set(sys.modules)))"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert answer.stdout.splitlines()[-1] == "heavy: []"
    for command in COMMANDS:
        assert command[0] in answer.stdout


def test_help_takes_less_than_half_a_second_of_processor_time() -> None:
    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        run("--help")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(seconds() for _ in range(3)) < 0.5


def test_submitted_job_has_what_was_asked_for(
    call: Call, broker: dict[str, str], store: JobStore
) -> None:
    options = "--max-tokens 9 --temperature 0.5 --top-p 0.9 --top-k 3 --seed 7 --priority high"
    answer = call(
        *("submit", "Once upon a time", *options.split()),
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
    assert document(store, answer.stdout.strip())["prompt"] == "piped in"


def test_chat_is_submitted_as_json(call: Call, broker: dict[str, str], store: JobStore) -> None:
    messages = [{"role": "user", "content": "Hello!"}]
    answer = call("submit", "--messages", json.dumps(messages), "--json", **broker)
    assert document(store, json.loads(answer.stdout)["id"])["messages"] == messages


def test_same_idempotency_key_answers_with_the_same_job(call: Call, broker: dict[str, str]) -> None:
    answers = [call("submit", "x", "--idempotency-key", "k", **broker) for _ in range(2)]
    assert answers[0].stdout == answers[1].stdout


def test_broker_flag_wins_over_the_environment(call: Call, redis_url: str, store: JobStore) -> None:
    wrong = {"BATCHMILL_BROKER_URL": "redis://127.0.0.1:1/0"}
    answer = call("submit", "x", "--broker-url", redis_url, **wrong)
    assert document(store, answer.stdout.strip())["prompt"] == "x"


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
    deadline = time.monotonic() + 15
    while not (ids := store.client.keys("batchmill:job:*")):  # type: ignore[misc]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    complete(store, ids[0].decode().removeprefix("batchmill:job:"))  # type: ignore[index]
    assert process.communicate(timeout=30)[0] == "an answer\n"
    assert process.returncode == 0


def test_status_of_a_job_tells_its_state(
    call: Call, broker: dict[str, str], store: JobStore
) -> None:
    job_id = call("submit", "x", **broker).stdout.strip()
    assert "queued" in call("status", job_id, **broker).stdout
    complete(store, job_id)
    data = json.loads(call("status", job_id, "--json", **broker).stdout)
    assert (data["id"], data["state"], data["output_tokens"]) == (job_id, "completed", 2)


def test_status_shows_queues_that_no_worker_serves(call: Call, broker: dict[str, str]) -> None:
    call("submit", "x", "--model", "other", **broker)
    data = json.loads(call("status", "--json", **broker).stdout)
    assert data["counts"]["queued"] == 1
    queues = {queue["queue"]: queue for queue in data["queues"]}
    assert queues["batchmill.other.normal"]["queued"] == 1
    assert queues["batchmill.other.normal"]["served"] is False
    assert data["workers"] == []
    text = call("status", **broker).stdout
    assert "by no worker" in text
    assert "batchmill up" in text


def test_cancelled_job_stays_cancelled(call: Call, broker: dict[str, str]) -> None:
    job_id = call("submit", "x", **broker).stdout.strip()
    answer = json.loads(call("cancel", job_id, "--json", **broker).stdout)
    assert answer["outcome"] == "cancelled"
    again = call("cancel", job_id, "--json", **broker)
    assert again.returncode == 0
    assert json.loads(again.stdout)["outcome"] == "already_terminal"
    result = call("result", job_id, "--json", **broker)
    assert (result.returncode, error_of(result)["code"]) == (6, "cancelled")


def test_dead_letters_are_listed_without_their_payload(
    call: Call, broker: dict[str, str], store: JobStore
) -> None:
    store.dead_letter_add(
        kind=DeadLetterKind.MESSAGE, reason="malformed", payload=b"a prompt", source="queue"
    )
    answer = call("dead-letters", "list", "--json", **broker)
    letters = json.loads(answer.stdout)
    assert letters["total"] == 1
    assert letters["dead_letters"][0]["reason"] == "malformed"
    assert letters["dead_letters"][0]["payload_bytes"] == 8
    assert "a prompt" not in answer.stdout
    assert "malformed" in call("dead-letters", "list", **broker).stdout


def test_webhook_that_was_given_up_is_listed_and_sent_again(
    call: Call, broker: dict[str, str], store: JobStore
) -> None:
    hook = "https://example.com/hook"
    job_id = call("submit", "x", "--webhook", hook, **broker).stdout.strip()
    complete(store, job_id)
    [event] = store.outbox_claim(owner="test", limit=10, lease_ms=60_000)
    outcome = DeliveryOutcome.EXHAUSTED
    store.outbox_settle(event.event_id, fence=event.fence, outcome=outcome, reason="http_500")
    [shown] = json.loads(call("webhooks", "list", "--json", **broker).stdout)["webhooks"]
    assert (shown["event_id"], shown["last_error"]) == (event.event_id, "http_500")
    assert hook in call("webhooks", "list", **broker).stdout
    assert call("webhooks", "redeliver", event.event_id, **broker).returncode == 0
    again = json.loads(call("webhooks", "redeliver", event.event_id, "--json", **broker).stdout)
    assert again["outcome"] == "pending"
    assert json.loads(call("webhooks", "list", "--json", **broker).stdout)["webhooks"] == []


@pytest.mark.parametrize(
    ("arguments", "exit_code", "code"),
    [
        (["submit", "x", "--max-tokens", "0"], 4, "invalid_request"),
        (["submit", "x", "--param", "n=2"], 4, "unsupported_parameter"),
        (["submit", "x", "--param", "no_such_field=1"], 4, "invalid_request"),
        (["submit", "x", "--messages", "[]"], 2, "usage"),
        (["submit", "--messages", "not json"], 2, "usage"),
        (["submit", "x", "--metadata", "no-value"], 2, "usage"),
        (["submit", "x", "--max-tokens", "many"], 2, "usage"),
        (["no-such-command"], 2, "usage"),
        (["status", "gen_unknown"], 5, "unknown_job"),
        (["result", "gen_unknown"], 5, "unknown_job"),
        (["cancel", "gen_unknown"], 5, "unknown_job"),
        (["webhooks", "redeliver", "evt_unknown"], 5, "unknown_event"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_each_kind_of_error_has_its_code_and_exit_code(
    call: Call, broker: dict[str, str], arguments: list[str], exit_code: int, code: str
) -> None:
    answer = call(*arguments, "--json", **broker)
    assert answer.returncode == exit_code
    assert error_of(answer)["code"] == code
    text = call(*arguments, **broker)
    assert text.returncode == exit_code
    assert text.stdout == ""
    assert "Traceback" not in text.stderr


def test_unreachable_broker_is_told_without_its_password(call: Call) -> None:
    url = "redis://:hunter2@127.0.0.1:1/0"
    answer = call("status", "--json", "--broker-url", url)
    assert answer.returncode == 3
    assert error_of(answer)["code"] == "broker_unavailable"
    assert "hunter2" not in answer.stderr


def test_missing_broker_says_how_to_start_one(call: Call, tmp_path: Any) -> None:
    answer = call("status", BATCHMILL_RUNTIME_DIR=str(tmp_path))
    assert answer.returncode == 3
    assert "batchmill up" in answer.stderr


def test_wait_that_takes_too_long_has_its_own_exit_code(call: Call, broker: dict[str, str]) -> None:
    job_id = call("submit", "x", **broker).stdout.strip()
    answer = call("result", job_id, "--timeout-s", "0", "--json", **broker)
    assert (answer.returncode, error_of(answer)["code"]) == (7, "timeout")


def test_config_shows_sources_and_masks_what_is_secret(call: Call) -> None:
    secret = json.loads(call("webhook-secret", "--json").stdout)["secret"]
    answer = call(
        *("config", "show", "--json"),
        BATCHMILL_WEBHOOK_SECRET=secret,
        BATCHMILL_BROKER_URL="redis://:hunter2@127.0.0.1:1/0",
        BATCHMILL_MAX_NUM_SEQS="7",
        BATCHMILL_MAX_NUM_SEQZ="7",
    )
    data = json.loads(answer.stdout)
    settings = {entry["name"]: entry for entry in data["settings"]}
    assert settings["max_num_seqs"]["value"] == 7
    assert settings["max_num_seqs"]["source"] == "environment"
    assert settings["max_model_len"]["source"] == "default"
    assert settings["webhook_secret"]["value"] == "***"
    assert "hunter2" not in answer.stdout
    assert secret not in answer.stdout
    assert data["unknown_variables"] == ["BATCHMILL_MAX_NUM_SEQZ"]
    assert all(entry["meaning"] for entry in data["settings"])


def test_wrong_setting_is_named_without_its_value(call: Call) -> None:
    answer = call("config", "show", "--json", BATCHMILL_WEBHOOK_SECRET="hunter2")
    assert answer.returncode == 8
    error = error_of(answer)
    assert "BATCHMILL_WEBHOOK_SECRET" in error["message"]
    assert "hunter2" not in error["message"]
    answer = call("config", "show", "--json", BATCHMILL_MAX_NUM_SEQS="some")
    assert "BATCHMILL_MAX_NUM_SEQS" in error_of(answer)["message"]


def test_every_setting_is_a_flag_except_secrets() -> None:
    settings = json.loads(run("config", "show", "--json").stdout)["settings"]
    text = run("worker", "--help").stdout + run("deliver", "--help").stdout
    for entry in settings:
        flag = f"--{entry['name'].replace('_', '-')} "
        is_secret = entry["name"] in ("webhook_secret", "hf_token")
        assert (flag in text) is not is_secret, flag


def test_wrong_value_of_a_flag_is_an_error_that_names_it(broker: dict[str, str]) -> None:
    answer = run("worker", "--max-num-seqs", "none", "--json", **broker)
    assert answer.returncode == 8
    assert "MAX_NUM_SEQS" in error_of(answer)["message"]


def test_deliverer_without_a_secret_does_not_start(broker: dict[str, str]) -> None:
    answer = run("deliver", "--json", **broker)
    assert answer.returncode == 1
    assert error_of(answer)["code"] == "no_webhook_secret"


def test_doctor_finds_a_broker_that_may_drop_jobs(
    call: Call, broker: dict[str, str], store: JobStore
) -> None:
    healthy = call("doctor", "--json", **broker)
    assert healthy.returncode == 0, healthy.stdout
    findings = {item["check"]: item for item in json.loads(healthy.stdout)["findings"]}
    assert findings["broker"]["level"] == "ok"
    assert findings["broker persistence"]["level"] == "warning"
    assert findings["model"]["level"] == "ok"
    assert "device" in findings
    store.client.config_set("maxmemory-policy", "allkeys-lru")
    try:
        answer = call("doctor", **broker)
    finally:
        store.client.config_set("maxmemory-policy", "noeviction")
    assert answer.returncode == 1
    assert "noeviction" in answer.stdout


def test_doctor_reports_a_missing_broker_with_its_remedy(call: Call, tmp_path: Any) -> None:
    answer = call("doctor", "--json", BATCHMILL_RUNTIME_DIR=str(tmp_path))
    assert answer.returncode == 1
    findings = {item["check"]: item for item in json.loads(answer.stdout)["findings"]}
    assert findings["broker"]["level"] == "problem"
    assert "batchmill up" in findings["broker"]["remedy"]
