"""One deliverer process from outbox to receiver: bodies, signatures, retries and settlement."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

import pytest

from batchmill.producer.protocol import keys
from batchmill.producer.protocol.outbox import RedeliverStatus
from batchmill.producer.protocol.records import DeadLetterKind
from batchmill.producer.protocol.replies import JobState
from batchmill.producer.store.job_store import JobStore
from batchmill.worker.service_errors import NoWebhookSecret
from batchmill.worker.webhooks.deliverer_process import run_deliverer
from batchmill.worker.webhooks.local_receiver import WebhookReceiver
from batchmill.worker.webhooks.settings import WebhookSettings

from ..webhook_deliverers import (
    OLD_SECRET,
    SECRET,
    Deliverers,
    event_state,
    finish_job,
    now_ms,
    respond_with,
    score,
    verify,
    wait_until,
)

EXAMPLE = Path(__file__).parents[3] / "examples" / "webhook_receiver.py"


def test_failed_attempts_are_repeated_with_the_same_id_and_bytes(
    store: JobStore, deliverers: Deliverers
) -> None:
    with WebhookReceiver(respond_with(500, 500, 200)) as receiver:
        event_id = finish_job(store, receiver.url + "/hook?token=1")
        deliverers.start()
        wait_until(lambda: event_state(store, event_id) == "delivered", "delivered")
        requests = receiver.requests
    assert len(requests) == 3
    assert {request.headers["webhook-id"] for request in requests} == {event_id}
    assert len({request.body for request in requests}) == 1
    assert [request.headers["x-attempt"] for request in requests] == ["1", "2", "3"]
    assert requests[0].path == "/hook?token=1"
    for request in requests:
        verify(request)
    assert store.counts().outbox == 0


def test_body_says_how_the_job_ended_without_its_text(
    store: JobStore, deliverers: Deliverers
) -> None:
    with WebhookReceiver() as receiver:
        finish_job(store, receiver.url)
        deliverers.start()
        assert receiver.wait_for(1, timeout_s=60)
        request = receiver.requests[0]
    event = json.loads(request.body)
    assert event["type"] == "generation.completed"
    assert abs(datetime.fromisoformat(event["timestamp"]).timestamp() - time.time()) < 60
    data = event["data"]
    assert (data["id"], data["status"], data["model"]) == ("gen_1", "completed", "demo")
    assert data["finish_reason"] == "stop"
    assert data["usage"]["completion_tokens"] == 2
    assert data["metadata"] == {"order": "17"}
    [attempt] = data["attempts"]
    assert (attempt["attempt"], attempt["cause"], attempt["code"]) == (1, "completed", None)
    assert attempt["started_at"] <= attempt["finished_at"]
    assert "worker" not in attempt
    assert b"secret" not in request.body
    assert request.headers["content-type"] == "application/json"
    assert request.headers["user-agent"].startswith("batchmill/")


def test_failed_job_is_reported_with_its_error_code(
    store: JobStore, deliverers: Deliverers
) -> None:
    with WebhookReceiver() as receiver:
        finish_job(store, receiver.url, state=JobState.FAILED)
        deliverers.start()
        assert receiver.wait_for(1, timeout_s=60)
        event = json.loads(receiver.requests[0].body)
    assert event["type"] == "generation.failed"
    assert event["data"]["error"]["code"] == "engine_error"
    [attempt] = event["data"]["attempts"]
    assert attempt["cause"] == "failed"
    assert event["data"]["usage"] is None


def test_event_of_a_deleted_job_is_still_delivered(store: JobStore, deliverers: Deliverers) -> None:
    with WebhookReceiver() as receiver:
        finish_job(store, receiver.url)
        store.client.delete(keys.job("gen_1"))
        deliverers.start()
        assert receiver.wait_for(1, timeout_s=60)
        data = json.loads(receiver.requests[0].body)["data"]
    assert (data["id"], data["status"]) == ("gen_1", "completed")


def test_both_secrets_sign_while_one_replaces_the_other(
    store: JobStore, deliverers: Deliverers
) -> None:
    with WebhookReceiver() as receiver:
        finish_job(store, receiver.url)
        deliverers.start(WEBHOOK_SECRET=f"{SECRET},{OLD_SECRET}")
        assert receiver.wait_for(1, timeout_s=60)
        request = receiver.requests[0]
    verify(request, SECRET)
    verify(request, OLD_SECRET)


def test_exhausted_event_becomes_a_dead_letter_and_can_be_sent_again(
    store: JobStore, deliverers: Deliverers
) -> None:
    with WebhookReceiver(respond_with(500, 503, 404, 500, 200)) as receiver:
        event_id = finish_job(store, receiver.url)
        deliverers.start()
        wait_until(lambda: event_state(store, event_id) == "exhausted", "exhausted")
        assert len(receiver.requests) == 4
        letter = store.dead_letter(event_id)
        assert letter is not None
        assert letter.kind is DeadLetterKind.WEBHOOK
        assert letter.payload == b"http_500"
        assert store.outbox_redeliver(event_id) is RedeliverStatus.OK
        wait_until(lambda: event_state(store, event_id) == "delivered", "delivered after all")
        requests = receiver.requests
    assert requests[-1].headers["webhook-id"] == event_id
    assert requests[-1].body == requests[0].body
    record = store.load("gen_1")
    assert record is not None
    assert record.state is JobState.COMPLETED


def test_gone_stops_at_once_and_the_result_stays(store: JobStore, deliverers: Deliverers) -> None:
    with WebhookReceiver(respond_with(410)) as receiver:
        event_id = finish_job(store, receiver.url)
        deliverers.start()
        wait_until(lambda: event_state(store, event_id) == "disabled", "disabled")
        assert len(receiver.requests) == 1
    record = store.load("gen_1")
    assert record is not None
    assert record.result is not None


def test_plain_http_is_not_sent_to_unless_allowed(store: JobStore, deliverers: Deliverers) -> None:
    with WebhookReceiver() as receiver:
        event_id = finish_job(store, receiver.url)
        deliverers.start(WEBHOOK_ALLOW_HTTP="0")
        wait_until(lambda: event_state(store, event_id) == "refused", "refused")
        assert receiver.requests == []
    letter = store.dead_letter(event_id)
    assert letter is not None
    assert letter.payload == b"refused_scheme"


def test_wait_before_the_next_attempt_follows_the_schedule(
    store: JobStore, deliverers: Deliverers
) -> None:
    with WebhookReceiver(respond_with(500)) as receiver:
        event_id = finish_job(store, receiver.url)
        deliverers.start(WEBHOOK_SCHEDULE_S="0,0.01,300")
        assert receiver.wait_for(2, timeout_s=60)
        wait_until(
            lambda: 235_000 < score(store, event_id) - now_ms(store) < 361_000,
            "the third attempt is due in 300 s plus or minus 20 %",
        )


def test_deliverer_without_a_secret_refuses_to_start(redis_url: str) -> None:
    with pytest.raises(NoWebhookSecret, match="BATCHMILL_WEBHOOK_SECRET"):
        run_deliverer(redis_url, WebhookSettings())


def test_example_receiver_verifies_and_uses_an_event(
    store: JobStore, deliverers: Deliverers
) -> None:
    example = subprocess.Popen(
        [sys.executable, str(EXAMPLE)],
        env={**os.environ, "PORT": "0", "BATCHMILL_WEBHOOK_SECRET": SECRET},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert example.stdout is not None
    try:
        url = example.stdout.readline().split()[-1]
        event_id = finish_job(store, url + "/hook")
        deliverers.start()
        assert example.stdout.readline().startswith("generation.completed gen_1")
        wait_until(lambda: event_state(store, event_id) == "delivered", "delivered")
    finally:
        example.kill()
        example.wait()
        example.stdout.close()
