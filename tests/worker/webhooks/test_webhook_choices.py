"""Choices of a job about its webhooks, and other libraries that verify them."""

from __future__ import annotations

import json
from functools import partial

import openai
import pytest

from batchmill.producer.protocol.calls.new_job import NewJob
from batchmill.producer.protocol.replies import Claim, TokenWrite
from batchmill.producer.store.deliveries import Deliveries
from batchmill.producer.store.job_store import JobStore
from batchmill.worker.webhooks.local_receiver import WebhookReceiver

from ..command_line import call
from ..webhook_deliverers import (
    OLD_SECRET,
    SECRET,
    Deliverers,
    event_state,
    finish_job,
    respond_with,
    verify,
    wait_until,
)


def is_delivered(store: JobStore, event_id: str) -> bool:
    return event_state(store, event_id) == "delivered"


@pytest.mark.parametrize(
    ("text", "output", "truncated"),
    [
        ("an answer", "an answer", False),
        ("ü" * 8192, "ü" * 8192, False),
        ("ü" * 8192 + "x", None, True),
    ],
)
def test_output_up_to_16_kib_is_included_if_the_job_asks_for_it(
    store: JobStore, deliverers: Deliverers, text: str, output: str | None, truncated: bool
) -> None:
    with WebhookReceiver() as receiver:
        finish_job(store, receiver.url, text=text, include_output=True)
        deliverers.start()
        assert receiver.wait_for(1, timeout_s=60)
        request = receiver.requests[0]
    data = json.loads(request.body)["data"]
    assert (data["output"], data["truncated"]) == (output, truncated)
    assert b'prompt"' not in request.body
    verify(request)


def test_started_and_output_events_report_a_running_job(
    store: JobStore, deliverers: Deliverers
) -> None:
    with WebhookReceiver() as receiver:
        job = NewJob("gen_1", "demo", "batchmill.demo.normal", '{"prompt":"p"}', 600_000)
        events = {"webhook": receiver.url, "webhook_events": "output,started"}
        store.submit(NewJob(**{**{n: getattr(job, n) for n in job.__slots__}, **events}))
        claim = store.claim("gen_1", owner="test", lease_ms=60_000, identity="test")
        assert isinstance(claim, Claim)
        store.checkpoint([TokenWrite("gen_1", claim.fence, 0, [7, 8, 9])], lease_ms=60_000)
        deliverers.start()
        assert receiver.wait_for(2, timeout_s=60)
        requests = receiver.requests
    events_by_type = {(e := json.loads(r.body))["type"]: e["data"] for r in requests}
    assert events_by_type.keys() == {"generation.started", "generation.output"}
    assert events_by_type["generation.output"]["progress"] == {"output_tokens": 3}
    for data in events_by_type.values():
        assert (data["status"], data["finished_at"]) == ("in_progress", None)
        assert data["started_at"] is not None


def test_named_secrets_sign_the_events_of_the_jobs_that_name_them(
    store: JobStore, deliverers: Deliverers
) -> None:
    with WebhookReceiver() as receiver:
        finish_job(store, receiver.url, secret="billing")
        deliverers.start(WEBHOOK_SECRETS=json.dumps({"billing": OLD_SECRET}))
        assert receiver.wait_for(1, timeout_s=60)
        request = receiver.requests[0]
    verify(request, OLD_SECRET)
    with pytest.raises(Exception, match="No matching signature"):
        verify(request, SECRET)


def test_missing_secret_is_never_replaced_by_another(
    store: JobStore, deliverers: Deliverers
) -> None:
    with WebhookReceiver() as receiver:
        event_id = finish_job(store, receiver.url, secret="unknown")
        deliverers.start()
        wait_until(lambda: event_state(store, event_id) == "exhausted", "exhausted")
        assert receiver.requests == []
    letter = store.dead_letter(event_id)
    assert letter is not None
    assert letter.payload == b"unknown_secret"


def test_openai_library_verifies_our_signatures_while_secrets_overlap(
    store: JobStore, deliverers: Deliverers
) -> None:
    with WebhookReceiver() as receiver:
        finish_job(store, receiver.url)
        deliverers.start(WEBHOOK_SECRET=f"{SECRET},{OLD_SECRET}")
        assert receiver.wait_for(1, timeout_s=60)
        request = receiver.requests[0]
    webhooks = openai.OpenAI(api_key="unused").webhooks
    for secret in (SECRET, OLD_SECRET):
        webhooks.verify_signature(request.body, dict(request.headers), secret=secret)
    with pytest.raises(openai.InvalidWebhookSignatureError):
        webhooks.verify_signature(request.body + b" ", dict(request.headers), secret=SECRET)


def test_nothing_is_sent_to_a_gone_endpoint_until_it_is_enabled(
    store: JobStore, deliverers: Deliverers, redis_url: str
) -> None:
    broker = {"BATCHMILL_BROKER_URL": redis_url}
    with WebhookReceiver(respond_with(410, 200)) as receiver:
        deliverers.start()
        hook = receiver.url + "/hook?flow=1"
        first = finish_job(store, hook, "gen_1")
        wait_until(lambda: event_state(store, first) == "disabled", "the first is given up")
        second = finish_job(store, hook, "gen_2")
        wait_until(lambda: event_state(store, second) == "disabled", "the second is not tried")
        elsewhere = finish_job(store, receiver.url + "/hook?flow=2", "gen_3")
        wait_until(partial(is_delivered, store, elsewhere), "other endpoints still work")
        assert len(receiver.requests) == 2
        listed = json.loads(call("webhooks", "list", "--json", **broker).stdout)
        [endpoint] = listed["disabled_endpoints"]
        assert (endpoint["url"], endpoint["disabled_reason"]) == (hook, "gone")
        for command in ("list", "endpoints"):
            assert hook in call("webhooks", command, **broker).stdout
        call("webhooks", "enable", hook, "--redeliver", **broker)
        for event_id in (first, second):
            wait_until(partial(is_delivered, store, event_id), "sent after all")
    shown = json.loads(call("webhooks", "show", first, "--json", **broker).stdout)
    assert [attempt["http_status"] for attempt in shown["log"]] == [410, 200]
    assert "http_410" in call("webhooks", "show", first, **broker).stdout
    event = Deliveries(store).event(first)
    assert event is not None
    assert all(attempt.duration_ms < 15_000 for attempt in event.log)


def test_events_are_replayed_since_a_time(
    store: JobStore, deliverers: Deliverers, redis_url: str
) -> None:
    broker = {"BATCHMILL_BROKER_URL": redis_url}
    with WebhookReceiver() as receiver:
        deliverers.start()
        event_id = finish_job(store, receiver.url + "/hook")
        wait_until(partial(is_delivered, store, event_id), "delivered")
        select = ("--endpoint", receiver.url + "/hook", "--job", "gen_1")
        future = call("webhooks", "replay", "--since", "2130-01-31T12:00:00Z", **broker)
        assert (future.returncode, future.stdout) == (2, "")
        assert "has yet to come" in future.stderr
        done = call("webhooks", "replay", "--since", "1h", *select, "--json", **broker)
        assert json.loads(done.stdout) == {
            "num_replayed": 1,
            "num_disabled": 0,
            "num_waiting": 0,
            "gone": [],
        }
        assert receiver.wait_for(2, timeout_s=60)
        first, second = receiver.requests
    assert (first.body, first.headers["webhook-id"]) == (second.body, second.headers["webhook-id"])
    assert call("webhooks", "replay", "--since", "yesterday", **broker).returncode == 2
