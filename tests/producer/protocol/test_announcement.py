"""Stock Celery and kombu accept the hand-written message, which contains nothing of the job."""

from __future__ import annotations

import json
from typing import Any

import celery
import pytest
from celery.worker.request import Request
from kombu import Connection, Message, Queue

from batchmill.producer.broker_url import celery_url
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.replies import HeldJob, ReleaseCause

QUEUE = keys.queue_name("org/Model-1.5:tuned", "high")
CANARY = "the secret prompt"


def announcements(bench: Any) -> list[dict[str, Any]]:
    return [json.loads(message) for message in bench.redis.lrange(keys.announced(QUEUE), 0, -1)]


@pytest.fixture
def submitted(bench: Any) -> Any:
    document = json.dumps({"prompt": CANARY})
    bench.submit("gen_1", queue=QUEUE, model="org/Model-1.5:tuned", document=document)
    return bench


def receive(url: str) -> Message:
    """Take the message as a Celery consumer does."""
    received: list[Message] = []
    with Connection(celery_url(url)) as connection:
        queue = Queue(keys.announced(QUEUE), routing_key=QUEUE, no_declare=True)
        with connection.Consumer(
            queue, callbacks=[lambda _, m: received.append(m)], accept=["json"]
        ):
            connection.drain_events(timeout=60)
        received[0].ack()
    return received[0]


def test_kombu_delivers_it_and_celery_makes_a_request_of_it(submitted: Any, redis_url: str) -> None:
    message = receive(redis_url)
    app = celery.Celery("test", set_as_current=False)

    @app.task(name=keys.TASK_NAME, shared=False)
    def generate(job: str, v: int) -> None: ...

    request = Request(message, app=app, task=generate)
    assert (request.id, request.name) == ("gen_1", keys.TASK_NAME)
    assert request.args == []
    assert request.kwargs == {"job": "gen_1", "v": 1}
    assert request.ignore_result is True
    assert request.correlation_id == request.root_id == "gen_1"
    assert (request.eta, request.expires, request.time_limits) == (None, None, [None, None])
    assert request.delivery_info["routing_key"] == QUEUE


def test_it_has_the_headers_that_celery_s_own_message_has(submitted: Any) -> None:
    own = celery.Celery("test", set_as_current=False).amqp.as_task_v2("gen_1", keys.TASK_NAME)
    [message] = announcements(submitted)
    optional = {"group_index", "replaced_task_nesting", "stamped_headers", "stamps"}
    assert set(own.headers) - set(message["headers"]) <= optional
    assert set(own.properties) <= set(message["properties"])
    _, kwargs, embed = json.loads(message["body"])
    assert kwargs == {"job": "gen_1", "v": 1}
    assert embed == own.body[2]


def test_it_contains_nothing_of_the_job(submitted: Any) -> None:
    [raw] = submitted.redis.lrange(keys.announced(QUEUE), 0, -1)
    assert CANARY.encode() not in raw
    [message] = announcements(submitted)
    assert (message["headers"]["argsrepr"], message["headers"]["kwargsrepr"]) == ("()", "{...}")


def test_every_announcement_has_another_delivery_tag(submitted: Any) -> None:
    submitted.store.release(
        [HeldJob("gen_1", submitted.claim("gen_1").fence)], cause=ReleaseCause.DRAIN
    )
    submitted.redis.delete(keys.announced(QUEUE))
    submitted.store.sweep(reannounce_grace_ms=0)
    submitted.submit("gen_2", queue=QUEUE)
    tags = [message["properties"]["delivery_tag"] for message in announcements(submitted)]
    assert tags == ["gen_2.1", "gen_1.3"]
