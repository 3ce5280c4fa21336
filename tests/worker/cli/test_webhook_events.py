"""`batchmill webhooks list`, `show` and `redeliver`: waiting and given-up events, by any id."""

from __future__ import annotations

import json
from typing import Any

import pytest

from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls.new_job import NewJob
from batchmill.producer.protocol.outbox import DeliveryOutcome
from batchmill.producer.protocol.replies import Claim, JobState
from batchmill.producer.store.job_store import JobStore

from ..command_line import CommandResult, call, complete, error_of

HOOK = "http://127.0.0.1:8000/hook"
_ALLOWED = {
    "BATCHMILL_WEBHOOK_ALLOW_HTTP": "1",
    "BATCHMILL_WEBHOOK_ALLOW_PORTS": "8000",
    "BATCHMILL_WEBHOOK_ALLOW_NETWORKS": "127.0.0.0/8",
}


def submit(broker: dict[str, str], *options: str) -> str:
    answer = call("submit", "x", "--webhook", HOOK, *options, **broker, **_ALLOWED)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout.strip()


def attempt(store: JobStore, outcome: DeliveryOutcome, reason: str, **options: Any) -> None:
    """Claim the event that is due, and settle it."""
    [event] = store.outbox_claim(owner="test", limit=1, lease_ms=60_000)
    store.outbox_settle(
        event.event_id, fence=event.fence, outcome=outcome, reason=reason, **options
    )


def shown(broker: dict[str, str], *arguments: str) -> Any:
    answer = call("webhooks", *arguments, "--json", **broker)
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout)


def test_waiting_events_show_their_next_attempt_and_last_error(
    broker: dict[str, str], store: JobStore
) -> None:
    first, second = submit(broker), submit(broker)
    complete(store, first)
    attempt(store, DeliveryOutcome.RETRY, "http_503", http_status=503, retry_in_ms=3_600_000)
    complete(store, second)

    listed = shown(broker, "list", "--waiting")
    assert listed["num_left_out"] == 0
    failed, untried = listed["waiting"]
    assert (failed["id"], failed["attempts"]) == (f"evt_{first}_completed", 1)
    assert failed["last_error"] == "http_503"
    assert "overloaded" in failed["explanation"]
    assert failed["due_at_ms"] > untried["due_at_ms"]
    assert (untried["attempts"], untried["last_error"]) == (0, "")

    text = call("webhooks", "list", "--waiting", **broker).stdout
    assert "2 webhooks waiting" in text
    assert "http_503: the receiver responded with 503" in text
    assert shown(broker, "list", "--waiting", "--limit", "1")["num_left_out"] == 1


def test_an_event_that_is_being_sent_or_paused_says_so(
    broker: dict[str, str], store: JobStore
) -> None:
    job = submit(broker)
    complete(store, job)
    assert call("pause", "endpoint", HOOK, **broker).returncode == 0
    assert "when the endpoint is resumed" in call("webhooks", "show", job, **broker).stdout
    assert call("resume", "endpoint", HOOK, **broker).returncode == 0
    store.outbox_claim(owner="test", limit=1, lease_ms=60_000)
    assert "being sent" in call("webhooks", "list", "--waiting", **broker).stdout


def test_a_refused_event_names_the_settings_of_the_deliverer(
    broker: dict[str, str], store: JobStore
) -> None:
    job = submit(broker)
    complete(store, job)
    attempt(store, DeliveryOutcome.REFUSED, "refused_scheme")

    [row] = shown(broker, "list")["webhooks"]
    assert row["outcome"] == "refused"
    for command in (("list",), ("show", job)):
        text = call("webhooks", *command, **broker).stdout
        assert "disabled" not in text
        assert (
            "restart the deliverer (`batchmill up` or `batchmill deliver`) with "
            "BATCHMILL_WEBHOOK_ALLOW_HTTP=true BATCHMILL_WEBHOOK_ALLOW_PORTS=8000 "
            "BATCHMILL_WEBHOOK_ALLOW_NETWORKS=127.0.0.0/8"
        ) in text


def test_a_refusal_by_an_older_deliverer_is_no_disabled_endpoint(
    broker: dict[str, str], store: JobStore
) -> None:
    complete(store, submit(broker))
    attempt(store, DeliveryOutcome.DISABLED, "refused_port")
    assert shown(broker, "list")["webhooks"][0]["outcome"] == "refused"


def test_events_are_found_and_sent_again_by_the_id_of_their_job(
    broker: dict[str, str], store: JobStore
) -> None:
    document = json.dumps({"prompt": "x", "webhook_events_filter": ["started", "completed"]})
    queue = keys.queue_name("demo", "normal")
    events = "started,completed"
    job = "gen_1"
    store.submit(NewJob(job, "demo", queue, document, 600_000, webhook=HOOK, webhook_events=events))
    claim = store.claim(job, owner="w", lease_ms=60_000, identity="i")
    assert isinstance(claim, Claim)
    attempt(store, DeliveryOutcome.DELIVERED, "http_200", http_status=200)
    store.complete(job, fence=claim.fence, state=JobState.COMPLETED, result="{}", token_ids=[1])
    attempt(store, DeliveryOutcome.EXHAUSTED, "timeout")

    found = shown(broker, "show", job)
    assert [event["type"] for event in found["events"]] == [
        "generation.started",
        "generation.completed",
    ]
    text = call("webhooks", "show", job, **broker).stdout
    assert "all attempts failed, 1 attempt\n" in text
    assert "1 attempts" not in text

    again = shown(broker, "redeliver", job)
    assert again == {"event_id": f"evt_{job}_completed", "outcome": "ok"}
    assert shown(broker, "redeliver", job)["outcome"] == "pending"


def test_the_latest_run_of_a_job_is_sent_again(broker: dict[str, str], store: JobStore) -> None:
    job = submit(broker)
    for command in ("cancel", "retry", "cancel"):
        assert call(command, job, **broker).returncode == 0
        if command == "cancel":
            attempt(store, DeliveryOutcome.DELIVERED, "http_200", http_status=200)

    assert len(shown(broker, "show", job)["events"]) == 2
    assert shown(broker, "redeliver", job)["event_id"] == f"evt_{job}_cancelled_run2"
    # Also when the record is gone, as long as the events are kept.
    store.client.delete(keys.job(job))
    assert len(shown(broker, "show", job)["events"]) == 2


def error(result: CommandResult) -> str:
    return str(error_of(result)["code"])


@pytest.mark.parametrize("command", ["show", "redeliver"])
def test_a_job_without_events_is_told_so(broker: dict[str, str], command: str) -> None:
    job = call("submit", "x", **broker).stdout.strip()
    for given in (job, "gen_unknown", "evt_unknown", "batch_unknown"):
        answer = call("webhooks", command, given, "--json", **broker)
        assert (answer.returncode, error(answer)) == (5, "unknown_event")


def test_a_forged_event_hides_no_other(broker: dict[str, str], store: JobStore) -> None:
    job = submit(broker)
    complete(store, job)
    store.client.zadd(keys.OUTBOX, {b"evt_text": 1, b"\xff": 2, b"evt_half": 3, b"evt_gone": 4})
    store.client.set(keys.event("evt_text"), "x")
    store.client.hset(keys.event("evt_half"), mapping={"type": "x", "url": "y"})
    [event] = shown(broker, "list", "--waiting")["waiting"]
    assert event["job_id"] == job
