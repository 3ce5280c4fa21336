from __future__ import annotations

import base64
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime

import pytest
from standardwebhooks.webhooks import Webhook

from batchmill.producer import keys
from batchmill.producer.answers import Claim, DeadLetterKind, JobState, RedeliverStatus
from batchmill.producer.calls import NewJob
from batchmill.producer.store import JobStore
from batchmill.worker.deliver import run_deliverer
from batchmill.worker.receiver import ReceivedRequest, WebhookReceiver
from batchmill.worker.service_errors import NoWebhookSecret
from batchmill.worker.webhook_settings import WebhookSettings

SECRET = "whsec_" + base64.b64encode(b"0" * 32).decode()
OLD_SECRET = "whsec_" + base64.b64encode(b"1" * 32).decode()
PROGRAM = """
import sys
from batchmill.worker.deliver import run_deliverer
from batchmill.worker.webhook_settings import WebhookSettings
run_deliverer(sys.argv[1], WebhookSettings())
"""
StartDeliverer = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def store(redis_url: str) -> Iterator[JobStore]:
    store = JobStore.from_url(redis_url)
    yield store
    store.close()


@pytest.fixture
def start_deliverer(redis_url: str) -> Iterator[StartDeliverer]:
    """Starts deliverer processes; they are ended with the test."""
    started: list[subprocess.Popen[bytes]] = []

    def start(**settings: object) -> subprocess.Popen[bytes]:
        chosen: Mapping[str, object] = {
            "WEBHOOK_SECRET": SECRET,
            "WEBHOOK_ALLOW_HTTP": "1",
            "WEBHOOK_SCHEDULE_S": "0,0.05,0.05,0.05",
            "WEBHOOK_POLL_INTERVAL_S": "0.02",
            **settings,
        }
        environment = {f"BATCHMILL_{name}": str(value) for name, value in chosen.items()}
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, redis_url], env={**os.environ, **environment}
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def finish_job(
    store: JobStore, webhook: str, job_id: str = "gen_1", state: JobState = JobState.COMPLETED
) -> str:
    """Bring a job to its end and return the id of the event that it owes."""
    document = json.dumps({"prompt": "a secret prompt", "metadata": {"order": "17"}})
    queue = keys.queue_name("demo", "normal")
    store.submit(NewJob(job_id, "demo", queue, document, result_ttl_ms=600_000, webhook=webhook))
    claim = store.claim(job_id, owner="test", lease_ms=60_000, identity="test")
    assert isinstance(claim, Claim)
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    result = {"text": "a secret answer", "finish_reason": "stop", "usage": usage}
    error = {"code": "engine_error", "message": "it broke", "retryable": True}
    store.complete(
        job_id,
        fence=claim.fence,
        state=state,
        result=json.dumps(result) if state is JobState.COMPLETED else None,
        error=json.dumps(error) if state is JobState.FAILED else None,
    )
    return f"evt_{job_id}_{state.value}"


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 15.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.01)


def event_state(store: JobStore, event_id: str) -> str:
    return (store.client.hget(keys.event(event_id), "state") or b"").decode()  # type: ignore[union-attr]


def answers(*statuses: int) -> Callable[[ReceivedRequest], int]:
    """Answer with each status in turn, and then with the last for ever."""
    remaining = list(statuses)
    lock = threading.Lock()

    def respond(request: ReceivedRequest) -> int:
        with lock:
            return remaining.pop(0) if len(remaining) > 1 else remaining[0]

    return respond


def verify(request: ReceivedRequest, secret: str = SECRET) -> None:
    """Check a signature with an implementation that is not ours."""
    Webhook(secret).verify(request.body, dict(request.headers))


def test_failed_attempts_are_repeated_with_the_same_id_and_bytes(
    store: JobStore, start_deliverer: StartDeliverer
) -> None:
    with WebhookReceiver(answers(500, 500, 200)) as receiver:
        event_id = finish_job(store, receiver.url + "/hook?token=1")
        start_deliverer()
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


def test_body_tells_how_the_job_ended_and_no_text(
    store: JobStore, start_deliverer: StartDeliverer
) -> None:
    with WebhookReceiver() as receiver:
        finish_job(store, receiver.url)
        start_deliverer()
        assert receiver.wait_for(1, timeout_s=15)
        request = receiver.requests[0]
    event = json.loads(request.body)
    assert event["type"] == "generation.completed"
    assert abs(datetime.fromisoformat(event["timestamp"]).timestamp() - time.time()) < 60
    data = event["data"]
    assert (data["id"], data["status"], data["model"]) == ("gen_1", "completed", "demo")
    assert data["finish_reason"] == "stop"
    assert data["usage"]["completion_tokens"] == 2
    assert data["metadata"] == {"order": "17"}
    assert b"secret" not in request.body
    assert request.headers["content-type"] == "application/json"
    assert request.headers["user-agent"].startswith("batchmill/")


def test_failed_job_is_told_with_its_error_code(
    store: JobStore, start_deliverer: StartDeliverer
) -> None:
    with WebhookReceiver() as receiver:
        finish_job(store, receiver.url, state=JobState.FAILED)
        start_deliverer()
        assert receiver.wait_for(1, timeout_s=15)
        event = json.loads(receiver.requests[0].body)
    assert event["type"] == "generation.failed"
    assert event["data"]["error"]["code"] == "engine_error"
    assert event["data"]["usage"] is None


def test_event_of_a_deleted_job_is_still_delivered(
    store: JobStore, start_deliverer: StartDeliverer
) -> None:
    with WebhookReceiver() as receiver:
        finish_job(store, receiver.url)
        store.client.delete(keys.job("gen_1"))
        start_deliverer()
        assert receiver.wait_for(1, timeout_s=15)
        data = json.loads(receiver.requests[0].body)["data"]
    assert (data["id"], data["status"]) == ("gen_1", "completed")


def test_both_secrets_sign_while_one_replaces_the_other(
    store: JobStore, start_deliverer: StartDeliverer
) -> None:
    with WebhookReceiver() as receiver:
        finish_job(store, receiver.url)
        start_deliverer(WEBHOOK_SECRET=f"{SECRET},{OLD_SECRET}")
        assert receiver.wait_for(1, timeout_s=15)
        request = receiver.requests[0]
    verify(request, SECRET)
    verify(request, OLD_SECRET)


def test_exhausted_event_becomes_a_dead_letter_and_can_be_sent_again(
    store: JobStore, start_deliverer: StartDeliverer
) -> None:
    with WebhookReceiver(answers(500, 503, 404, 500, 200)) as receiver:
        event_id = finish_job(store, receiver.url)
        start_deliverer()
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


def test_gone_stops_at_once_and_the_result_stays(
    store: JobStore, start_deliverer: StartDeliverer
) -> None:
    with WebhookReceiver(answers(410)) as receiver:
        event_id = finish_job(store, receiver.url)
        start_deliverer()
        wait_until(lambda: event_state(store, event_id) == "disabled", "disabled")
        assert len(receiver.requests) == 1
    record = store.load("gen_1")
    assert record is not None
    assert record.result is not None


def test_plain_http_is_not_sent_to_unless_allowed(
    store: JobStore, start_deliverer: StartDeliverer
) -> None:
    with WebhookReceiver() as receiver:
        event_id = finish_job(store, receiver.url)
        start_deliverer(WEBHOOK_ALLOW_HTTP="0")
        wait_until(lambda: event_state(store, event_id) == "disabled", "disabled")
        assert receiver.requests == []
    letter = store.dead_letter(event_id)
    assert letter is not None
    assert letter.payload == b"refused"


def test_killed_between_post_and_settle_sends_the_same_id_and_bytes_again(
    store: JobStore, start_deliverer: StartDeliverer
) -> None:
    posted, released = threading.Event(), threading.Event()

    def respond(request: ReceivedRequest) -> int:
        posted.set()
        released.wait(30)
        return 200

    with WebhookReceiver(respond) as receiver:
        event_id = finish_job(store, receiver.url)
        first = start_deliverer()
        assert posted.wait(15)
        first.send_signal(signal.SIGKILL)
        first.wait()
        released.set()
        # The dead deliverer's lease runs out: its due time is the end of the lease.
        store.client.zadd(keys.OUTBOX, {event_id: 0})
        start_deliverer()
        wait_until(lambda: event_state(store, event_id) == "delivered", "delivered")
        requests = receiver.requests
    assert len(requests) == 2
    assert requests[0].headers["webhook-id"] == requests[1].headers["webhook-id"] == event_id
    assert requests[0].body == requests[1].body
    assert [request.headers["x-attempt"] for request in requests] == ["1", "2"]
    for request in requests:
        verify(request)


def test_claimed_event_of_a_dead_deliverer_comes_back_within_its_lease(
    store: JobStore, start_deliverer: StartDeliverer
) -> None:
    """The lease is bounded: longest attempt, wait for a turn and margin."""
    with WebhookReceiver(answers(500)) as receiver:
        event_id = finish_job(store, receiver.url)
        start_deliverer(WEBHOOK_SCHEDULE_S="0,1000", WEBHOOK_JITTER="0")
        wait_until(lambda: score(store, event_id) > now_ms(store) + 900_000, "waits for its retry")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hung = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        event_id = finish_job(store, hung, "gen_2")
        start_deliverer(WEBHOOK_TOTAL_TIMEOUT_S="5")
        wait_until(lambda: score(store, event_id) > now_ms(store) + 10_000, "claimed")
        assert score(store, event_id) <= now_ms(store) + 60_000


def score(store: JobStore, event_id: str) -> float:
    return float(store.client.zscore(keys.OUTBOX, event_id) or 0)  # type: ignore[arg-type]


def now_ms(store: JobStore) -> float:
    seconds, microseconds = store.client.time()  # type: ignore[misc]
    return float(seconds * 1000 + microseconds / 1000)


def test_wait_before_the_next_attempt_follows_the_schedule(
    store: JobStore, start_deliverer: StartDeliverer
) -> None:
    with WebhookReceiver(answers(500)) as receiver:
        event_id = finish_job(store, receiver.url)
        start_deliverer(WEBHOOK_SCHEDULE_S="0,0.01,300")
        assert receiver.wait_for(2, timeout_s=15)
        wait_until(
            lambda: 235_000 < score(store, event_id) - now_ms(store) < 361_000,
            "the third attempt is due in 300 s, 20 % more or less",
        )


def test_hanging_receivers_do_not_hold_up_the_others(
    store: JobStore, start_deliverer: StartDeliverer
) -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=512) as silent, WebhookReceiver() as good:
        hung = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        for number in range(150):
            finish_job(store, hung, f"gen_hung_{number}")
        for number in range(20):
            finish_job(store, good.url, f"gen_good_{number}")
        start_deliverer(WEBHOOK_CONCURRENCY="64", WEBHOOK_CONCURRENCY_PER_HOST="4")
        assert good.wait_for(20, timeout_s=12), f"{len(good.requests)} of 20 arrived"


def test_many_events_for_one_receiver_each_arrive_once(
    store: JobStore, start_deliverer: StartDeliverer
) -> None:
    num_events = 400
    with WebhookReceiver() as receiver:
        for number in range(num_events):
            finish_job(store, receiver.url, f"gen_{number}")
        start_deliverer()
        start_deliverer()
        wait_until(lambda: store.counts().outbox == 0, "the outbox is empty", 30)
        requests = receiver.requests
    ids = [request.headers["webhook-id"] for request in requests]
    assert len(ids) == len(set(ids)) == num_events
    assert {request.headers["x-attempt"] for request in requests} == {"1"}


def test_sigterm_finishes_what_is_being_sent(
    store: JobStore, start_deliverer: StartDeliverer
) -> None:
    posted, released = threading.Event(), threading.Event()

    def respond(request: ReceivedRequest) -> int:
        posted.set()
        released.wait(30)
        return 200

    with WebhookReceiver(respond) as receiver:
        event_id = finish_job(store, receiver.url)
        process = start_deliverer()
        assert posted.wait(15)
        process.send_signal(signal.SIGTERM)
        released.set()
        assert process.wait(15) == 0
    assert event_state(store, event_id) == "delivered"


def test_sigterm_gives_back_what_waits_for_its_turn_uncounted(
    store: JobStore, start_deliverer: StartDeliverer
) -> None:
    posted, released = threading.Event(), threading.Event()

    def respond(request: ReceivedRequest) -> int:
        posted.set()
        released.wait(30)
        return 200

    with WebhookReceiver(respond) as receiver:
        for number in range(3):
            finish_job(store, receiver.url, f"gen_{number}")
        process = start_deliverer(WEBHOOK_CONCURRENCY_PER_HOST="1")
        ids = [f"evt_gen_{number}_completed" for number in range(3)]
        wait_until(lambda: all(score(store, i) > now_ms(store) for i in ids), "all are claimed")
        assert posted.wait(15)
        process.send_signal(signal.SIGTERM)
        wait_until(
            lambda: sum(score(store, i) <= now_ms(store) for i in ids) == 2, "two are due again"
        )
        released.set()
        assert process.wait(15) == 0
        assert len(receiver.requests) == 1
    due = store.outbox_claim(owner="test", limit=10, lease_ms=1000)
    assert [event.attempt for event in due] == [1, 1]


def test_deliverer_without_a_secret_refuses_to_start(redis_url: str) -> None:
    with pytest.raises(NoWebhookSecret, match="BATCHMILL_WEBHOOK_SECRET"):
        run_deliverer(redis_url, WebhookSettings())


def test_deliverer_outlives_a_restart_of_redis(private_redis_server: object) -> None:
    server = private_redis_server
    store = JobStore.from_url(server.url)  # type: ignore[attr-defined]
    environment = {
        "BATCHMILL_WEBHOOK_SECRET": SECRET,
        "BATCHMILL_WEBHOOK_ALLOW_HTTP": "1",
        "BATCHMILL_WEBHOOK_POLL_INTERVAL_S": "0.02",
    }
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, server.url],  # type: ignore[attr-defined]
        env={**os.environ, **environment},
    )
    try:
        with WebhookReceiver() as receiver:
            finish_job(store, receiver.url, "gen_before")
            assert receiver.wait_for(1, timeout_s=15)
            server.kill()  # type: ignore[attr-defined]
            server.start()  # type: ignore[attr-defined]
            event_id = finish_job(store, receiver.url, "gen_after")
            wait_until(lambda: event_state(store, event_id) == "delivered", "delivered", 20)
        assert process.poll() is None
    finally:
        process.kill()
        process.wait()
        store.close()
