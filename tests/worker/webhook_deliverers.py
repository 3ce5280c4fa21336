"""Deliverer processes, jobs that owe them a webhook, and receivers with set responses."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable

from standardwebhooks.webhooks import Webhook

from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls.new_job import NewJob
from batchmill.producer.protocol.replies import Claim, JobState
from batchmill.producer.store.job_store import JobStore
from batchmill.worker.webhooks.local_receiver import LOOPBACK, ReceivedRequest

from ..support.outbox import due_ms

SECRET = "whsec_" + base64.b64encode(b"0" * 32).decode()
OLD_SECRET = "whsec_" + base64.b64encode(b"1" * 32).decode()
PROGRAM = """
import sys
from batchmill.worker.webhooks.deliverer_process import run_deliverer
from batchmill.worker.webhooks.settings import WebhookSettings
run_deliverer(sys.argv[1], WebhookSettings())
"""


class Deliverers:
    """Deliverer processes on one server."""

    def __init__(self, redis_url: str) -> None:
        self._redis_url = redis_url
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self, **settings: object) -> subprocess.Popen[bytes]:
        """Start a deliverer with a quick schedule; settings are BATCHMILL_<NAME> variables."""
        chosen: dict[str, object] = {
            "WEBHOOK_SECRET": SECRET,
            "WEBHOOK_ALLOW_HTTP": "1",
            "WEBHOOK_ALLOW_PORTS": "1024-65535",
            "WEBHOOK_ALLOW_NETWORKS": LOOPBACK,
            "WEBHOOK_SCHEDULE_S": "0,0.05,0.05,0.05",
            "WEBHOOK_POLL_INTERVAL_S": "0.02",
            "WEBHOOK_BUSY_WAIT_S": "0.05",
            "WEBHOOK_BREAKER_WAIT_S": "0.05",
            **settings,
        }
        given = {name: value for name, value in chosen.items() if value is not None}
        environment = {f"BATCHMILL_{name}": str(value) for name, value in given.items()}
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, self._redis_url], env={**os.environ, **environment}
        )
        self._started.append(process)
        return process

    def close(self) -> None:
        for process in self._started:
            process.kill()
            process.wait()


def finish_job(
    store: JobStore,
    webhook: str,
    job_id: str = "gen_1",
    state: JobState = JobState.COMPLETED,
    *,
    text: str = "a secret answer",
    secret: str = "",
    **fields: object,
) -> str:
    """Bring a job to its end, and return the id of the event that it owes."""
    content = {"prompt": "a secret prompt", "metadata": {"order": "17"}, **fields}
    document = json.dumps(content)
    queue = keys.queue_name("demo", "normal")
    ttl_ms = 600_000
    store.submit(
        NewJob(job_id, "demo", queue, document, ttl_ms, webhook=webhook, webhook_secret=secret)
    )
    claim = store.claim(job_id, owner="test", lease_ms=60_000, identity="test")
    assert isinstance(claim, Claim)
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    result = {"text": text, "finish_reason": "stop", "usage": usage}
    error = {"code": "engine_error", "message": "it broke", "retryable": True}
    store.complete(
        job_id,
        fence=claim.fence,
        state=state,
        result=json.dumps(result) if state is JobState.COMPLETED else None,
        error=json.dumps(error) if state is JobState.FAILED else None,
    )
    return f"evt_{job_id}_{state.value}"


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.01)


def event_state(store: JobStore, event_id: str) -> str:
    state = store.client.hget(keys.event(event_id), "state")
    return state.decode() if isinstance(state, bytes) else ""


def score(store: JobStore, event_id: str) -> float:
    return due_ms(store.client, event_id) or 0.0


def now_ms(store: JobStore) -> float:
    seconds, microseconds = store.client.time()
    return float(seconds * 1000 + microseconds / 1000)


def respond_with(*statuses: int) -> Callable[[ReceivedRequest], int]:
    """Return a responder that sends each status in turn, and then the last one forever."""
    remaining = list(statuses)
    lock = threading.Lock()

    def respond(request: ReceivedRequest) -> int:
        with lock:
            return remaining.pop(0) if len(remaining) > 1 else remaining[0]

    return respond


def verify(request: ReceivedRequest, secret: str = SECRET) -> None:
    """Check a signature with a third-party implementation."""
    Webhook(secret).verify(request.body, dict(request.headers))
