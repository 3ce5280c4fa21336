"""Commands of operators: queues, dead letters, webhooks, settings and the doctor."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from batchmill.engine.cpu_kernels import auto_dtype
from batchmill.kernels.cpu.build import build_library
from batchmill.kernels.cpu.isa import best_isa
from batchmill.producer.protocol.outbox import DeliveryOutcome
from batchmill.producer.protocol.records import DeadLetterKind, WorkerInfo
from batchmill.producer.protocol.replies import Claim, HeldJob, JobState, ReleaseCause
from batchmill.producer.store.job_store import JobStore
from batchmill.worker.cli.doctor_device import find_ranks
from batchmill.worker.cli.doctor_findings import Level

from ...support.worker_info import worker_info
from ..command_line import call, complete, error_of, run


def test_status_shows_queues_that_no_worker_serves(broker: dict[str, str]) -> None:
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


def heartbeat(name: str, **stats: int | str) -> WorkerInfo:
    return worker_info(name, stats={"jobs": 1, **stats})


def test_status_shows_the_draft_tokens_of_workers_with_prompt_lookup(
    broker: dict[str, str], store: JobStore
) -> None:
    store.announce_worker(heartbeat("off"))
    assert "draft tokens" not in call("status", **broker).stdout
    store.announce_worker(heartbeat("busy", draft_tokens=1204, accepted_tokens=855))
    store.announce_worker(heartbeat("fresh", draft_tokens=0, accepted_tokens=0))
    store.announce_worker(heartbeat("forged", draft_tokens="many", accepted_tokens=1))
    rows = [line.split() for line in call("status", **broker).stdout.splitlines() if line]
    shown = {row[0]: " ".join(row[9:]) for row in rows if row[1:2] == ["demo"]}
    assert shown == {
        "busy": "drafts 1,204, accepted 71 %",
        "fresh": "drafts 0",
        "forged": "-",
        "off": "-",
    }
    workers = json.loads(call("status", "--json", **broker).stdout)["workers"]
    assert {worker["name"]: worker["stats"] for worker in workers}["busy"] == {
        "jobs": 1,
        "draft_tokens": 1204,
        "accepted_tokens": 855,
    }


def test_dead_letters_are_listed_without_their_payload(
    broker: dict[str, str], store: JobStore
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


def dead_job(broker: dict[str, str], store: JobStore) -> str:
    """Return a job that became a dead letter because engines died with it again and again."""
    job_id: str = json.loads(call("submit", "a prompt", "--json", **broker).stdout)["id"]
    while not store.dead_letters():
        claim = store.claim(job_id, owner="w1", lease_ms=1000, identity="x")
        assert isinstance(claim, Claim)
        store.release([HeldJob(job_id, claim.fence)], cause=ReleaseCause.ENGINE_DEATH)
    return job_id


def test_dead_job_is_retried_under_its_own_id(broker: dict[str, str], store: JobStore) -> None:
    job_id = dead_job(broker, store)
    answer = json.loads(call("dead-letters", "retry", job_id, "--json", **broker).stdout)
    assert (answer["id"], answer["retried_as"]) == (job_id, job_id)
    record = store.load(job_id)
    assert record is not None
    assert (record.state, record.crashes, record.run) == (JobState.QUEUED, 0, 2)
    assert store.dead_letters() == []
    again = run("dead-letters", "retry", job_id, "--json", **broker)
    assert (again.returncode, error_of(again)["code"]) == (5, "unknown_dead_letter")


def test_the_attempts_of_a_dead_job_are_shown(broker: dict[str, str], store: JobStore) -> None:
    job_id = dead_job(broker, store)
    letter = json.loads(call("dead-letters", "show", job_id, "--json", **broker).stdout)
    status = json.loads(call("status", job_id, "--json", **broker).stdout)
    assert [attempt["cause"] for attempt in letter["history"]] == ["engine_death"] * 6
    assert status["history"] == letter["history"]
    for command in (("dead-letters", "show"), ("status",)):
        shown = call(*command, job_id, **broker).stdout
        assert "Attempts: engine_death 6" in shown
        assert shown.count("engine_death") == 8
        assert "engine_death: the engine died with the job; held against it" in shown
        assert "a prompt" not in shown
    unknown = run("dead-letters", "show", "gen_unknown", "--json", **broker)
    assert (unknown.returncode, error_of(unknown)["code"]) == (5, "unknown_dead_letter")


def test_a_job_that_waits_for_its_retry_shows_when_and_why(
    broker: dict[str, str], store: JobStore
) -> None:
    retry = '{"max_attempts": 5, "backoff_s": 60}'
    submitted = call("submit", "a prompt", "--retry", retry, "--json", **broker)
    job_id = json.loads(submitted.stdout)["id"]
    claim = store.claim(job_id, owner="w1", lease_ms=1000, identity="x")
    assert isinstance(claim, Claim)
    assert json.loads(claim.document)["retry"] == {"max_attempts": 5, "backoff_s": 60.0}
    error = '{"code":"out_of_memory","message":"memory ran out","retryable":true}'
    store.complete(
        job_id, fence=claim.fence, state=JobState.FAILED, error=error, retry_in_ms=60_000
    )

    status = json.loads(call("status", job_id, "--json", **broker).stdout)
    assert (status["state"], status["retries"]) == ("queued", 1)
    assert status["retry_error"]["code"] == "out_of_memory"
    shown = call("status", job_id, **broker).stdout
    assert "UTC, after out_of_memory: memory ran out" in shown
    progress = json.loads(call("progress", job_id, "--json", **broker).stdout)
    assert progress["queue_position"] is None


def test_dead_letter_is_dropped_once(broker: dict[str, str], store: JobStore) -> None:
    job_id = dead_job(broker, store)
    assert job_id in call("dead-letters", "drop", job_id, **broker).stdout
    assert store.dead_letters() == []
    again = run("dead-letters", "drop", job_id, "--json", **broker)
    assert (again.returncode, error_of(again)["code"]) == (5, "unknown_dead_letter")


def test_webhook_that_was_given_up_is_listed_and_sent_again(
    broker: dict[str, str], store: JobStore
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


def test_config_shows_sources_and_masks_secrets() -> None:
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


def test_invalid_setting_is_named_without_its_value() -> None:
    answer = call("config", "show", "--json", BATCHMILL_WEBHOOK_SECRET="hunter2")
    assert answer.returncode == 8
    error = error_of(answer)
    assert "BATCHMILL_WEBHOOK_SECRET" in error["message"]
    assert "hunter2" not in error["message"]
    answer = call("config", "show", "--json", BATCHMILL_MAX_NUM_SEQS="some")
    assert "BATCHMILL_MAX_NUM_SEQS" in error_of(answer)["message"]


SECRETS = (
    *("webhook_secret", "webhook_secrets", "hf_token", "gateway_api_key"),
    *("watermark_keys", "encryption_keys"),
)


def test_every_setting_is_a_flag_except_secrets() -> None:
    settings = json.loads(run("config", "show", "--json").stdout)["settings"]
    text = "".join(run(command, "--help").stdout for command in ("worker", "deliver", "gateway"))
    for entry in settings:
        flag = f"--{entry['name'].replace('_', '-')} "
        # Prices are read by `bulk`, which has no flags of settings.
        is_no_flag = entry["name"] in SECRETS or entry["name"] == "prices"
        assert (flag in text) is not is_no_flag, flag


def test_invalid_value_of_a_flag_is_an_error_that_names_it(broker: dict[str, str]) -> None:
    answer = run("worker", "--max-num-seqs", "some", "--json", **broker)
    assert answer.returncode == 8
    assert "MAX_NUM_SEQS" in error_of(answer)["message"]


def test_settings_that_conflict_are_reported_in_our_words() -> None:
    answer = run("worker", "--json", "--prompt-lookup-min", "9")
    assert answer.returncode == 8
    assert error_of(answer)["message"] == (
        "invalid settings: prompt_lookup_min is 9, more than prompt_lookup_max 4: lower "
        "prompt_lookup_min or raise prompt_lookup_max"
    )


def test_deliverer_without_a_secret_does_not_start(broker: dict[str, str]) -> None:
    answer = run("deliver", "--json", **broker)
    assert answer.returncode == 8
    assert error_of(answer)["code"] == "no_webhook_secret"


def test_doctor_finds_a_broker_that_may_drop_jobs(broker: dict[str, str], store: JobStore) -> None:
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


def test_a_broker_without_the_replicas_that_are_asked_for(broker: dict[str, str]) -> None:
    wanted = {"BATCHMILL_BROKER_MIN_REPLICAS": "1", "BATCHMILL_BROKER_REPLICA_TIMEOUT_S": "0.1"}
    doctor = call("doctor", **broker, **wanted)
    assert doctor.returncode == 1
    assert "the broker has 0 replicas" in doctor.stdout
    submit = call("submit", "a prompt", "--json", **broker, **wanted)
    error = error_of(submit)
    assert error["code"] == "not_replicated"
    assert "0 of 1 replicas" in error["message"]
    [job_id] = error["job_ids"]
    status = call("status", job_id, "--json", **broker)
    assert json.loads(status.stdout)["state"] == "queued"


def test_doctor_reports_a_missing_broker_with_its_remedy(tmp_path: Any) -> None:
    answer = call("doctor", "--json", BATCHMILL_RUNTIME_DIR=str(tmp_path))
    assert answer.returncode == 1
    findings = {item["check"]: item for item in json.loads(answer.stdout)["findings"]}
    assert findings["broker"]["level"] == "problem"
    assert "batchmill up" in findings["broker"]["remedy"]


@pytest.mark.parametrize("given", ["", "auto", "float16"])
def test_doctor_reports_the_dtype_that_a_worker_would_have(given: str, tmp_path: Any) -> None:
    settings = {"BATCHMILL_RUNTIME_DIR": str(tmp_path), "BATCHMILL_DEVICE": "cpu"}
    answer = call("doctor", "--json", BATCHMILL_DTYPE=given, **settings)
    findings = {item["check"]: item for item in json.loads(answer.stdout)["findings"]}
    found = findings["dtype"]["detail"]
    if given == "float16":
        assert found == "float16, from BATCHMILL_DTYPE"
    else:
        assert found.startswith(f"auto: {auto_dtype(on_cpu=True)}, because this CPU")


@pytest.mark.parametrize(
    ("given", "device", "level", "detail"),
    [
        ("2", "cpu", Level.WARNING, "2 processes on the CPU"),
        ("2", "cuda:7", Level.PROBLEM, "device is 'cuda:7'"),
        ("two", "cpu", Level.PROBLEM, "BATCHMILL_TENSOR_PARALLEL_SIZE is 'two'"),
    ],
    ids=["cpu", "too-few-gpus", "no-number"],
)
def test_doctor_looks_for_a_device_of_each_rank(
    given: str, device: str, level: Level, detail: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BATCHMILL_TENSOR_PARALLEL_SIZE", given)
    monkeypatch.setenv("BATCHMILL_DEVICE", device)
    found = find_ranks()
    assert found is not None
    assert (found.level, detail in found.detail) == (level, True)
    monkeypatch.delenv("BATCHMILL_TENSOR_PARALLEL_SIZE")
    assert find_ranks() is None


#: Runs the check of a GPU's kernels in Triton's interpreter, whole and with a broken launcher.
KERNEL_CHECK = """
from batchmill.kernels.ops import rms_norm
from batchmill.worker.cli.doctor_device import find_gpu_kernel
print(find_gpu_kernel("cpu").level)
for fails in ("raise RuntimeError('Failed to find C compiler')", "return x * 1.01"):
    exec(f"def launch(x, weight, eps): {fails}")
    rms_norm._NORM_BACKENDS = {**rms_norm._NORM_BACKENDS, "triton": launch}
    found = find_gpu_kernel("cpu")
    print(found.level, found.detail)
"""


def test_doctor_compiles_and_runs_a_gpu_kernel() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-c", KERNEL_CHECK]
    lines = subprocess.check_output(command, env=environment, text=True).splitlines()
    assert lines[0] == "ok"
    assert lines[1].startswith("problem a Triton kernel does not run: RuntimeError: Failed to find")
    assert lines[2].startswith("problem a Triton kernel computes wrong numbers")


def test_doctor_reports_whether_the_cpu_kernels_are_compiled(tmp_path: Any) -> None:
    def finding(**environment: str) -> dict[str, str]:
        answer = call("doctor", "--json", BATCHMILL_RUNTIME_DIR=str(tmp_path), **environment)
        (found,) = (
            item for item in json.loads(answer.stdout)["findings"] if item["check"] == "CPU kernels"
        )
        return dict(found)

    isa = best_isa()
    built = build_library(isa)
    assert finding()["detail"] == f"compiled for {isa.name}: {built}"
    # Compiled kernels need no compiler.
    assert finding(PATH=str(tmp_path))["level"] == "ok"
    not_yet = finding(BATCHMILL_CACHE_DIR=str(tmp_path))
    assert not_yet["level"] == "ok"
    assert f"not compiled for {isa.name} yet" in not_yet["detail"]
    assert "batchmill.kernels.cpu.build" in not_yet["remedy"]
    never = finding(BATCHMILL_CACHE_DIR=str(tmp_path), PATH=str(tmp_path))
    assert never["level"] == "warning"
    assert "install g++" in never["remedy"]
