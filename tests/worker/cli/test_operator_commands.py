"""Commands of operators: queues, dead letters, webhooks, settings and the doctor."""

from __future__ import annotations

import json
from typing import Any

from batchmill.kernels.cpu.build import build_library
from batchmill.kernels.cpu.isa import best_isa
from batchmill.producer.protocol.outbox import DeliveryOutcome
from batchmill.producer.protocol.records import DeadLetterKind, WorkerInfo
from batchmill.producer.protocol.replies import Claim, HeldJob, JobState, ReleaseCause
from batchmill.producer.store.job_store import JobStore

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
    return WorkerInfo(
        name=name,
        model="demo",
        identity="x",
        queues=("batchmill.demo.normal",),
        max_model_len=512,
        max_num_seqs=4,
        started_at_ms=0,
        state="ready",
        versions=(1,),
        stats={"jobs": 1, **stats},
    )


def test_status_shows_the_draft_tokens_of_workers_with_prompt_lookup(
    broker: dict[str, str], store: JobStore
) -> None:
    store.announce_worker(heartbeat("off"))
    assert "prompt lookup" not in call("status", **broker).stdout
    store.announce_worker(heartbeat("busy", draft_tokens=1204, accepted_tokens=855))
    store.announce_worker(heartbeat("fresh", draft_tokens=0, accepted_tokens=0))
    store.announce_worker(heartbeat("forged", draft_tokens="many", accepted_tokens=1))
    rows = [line.split() for line in call("status", **broker).stdout.splitlines() if line]
    shown = {row[0]: " ".join(row[7:]) for row in rows if row[1:2] == ["demo"]}
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


def test_every_setting_is_a_flag_except_secrets() -> None:
    settings = json.loads(run("config", "show", "--json").stdout)["settings"]
    text = run("worker", "--help").stdout + run("deliver", "--help").stdout
    for entry in settings:
        flag = f"--{entry['name'].replace('_', '-')} "
        is_secret = entry["name"] in ("webhook_secret", "webhook_secrets", "hf_token")
        assert (flag in text) is not is_secret, flag


def test_invalid_value_of_a_flag_is_an_error_that_names_it(broker: dict[str, str]) -> None:
    answer = run("worker", "--max-num-seqs", "none", "--json", **broker)
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


def test_doctor_reports_a_missing_broker_with_its_remedy(tmp_path: Any) -> None:
    answer = call("doctor", "--json", BATCHMILL_RUNTIME_DIR=str(tmp_path))
    assert answer.returncode == 1
    findings = {item["check"]: item for item in json.loads(answer.stdout)["findings"]}
    assert findings["broker"]["level"] == "problem"
    assert "batchmill up" in findings["broker"]["remedy"]


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
