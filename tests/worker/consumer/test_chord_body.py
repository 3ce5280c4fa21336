"""The body of a chord is sent although Redis fails when the last part has returned."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery, chord, states
from celery.app.task import Context
from celery.canvas import Signature
from kombu.exceptions import OperationalError
from redis.exceptions import ConnectionError as RedisConnectionError

from batchmill.producer.store.connection import connect
from batchmill.worker.consumer.app_factory import create_app
from batchmill.worker.consumer.result_backend import BROKER_ERRORS
from batchmill.worker.settings import WorkerSettings

# Of Celery's own calls of redis-py; in a worker's process they are not shown.
pytestmark = pytest.mark.filterwarnings("ignore:Call to deprecated:DeprecationWarning")

BODIES = "bodies"


@pytest.fixture
def app(redis_url: str) -> Iterator[Celery]:
    made = create_app(WorkerSettings(broker_url=redis_url))
    made.conf.broker_write_url = made.conf.broker_read_url
    yield made
    # Results unsubscribe when they are collected, and the server may be gone by then.
    backend: Any = made.backend
    backend.result_consumer.subscribed_to.clear()
    made.close()


@pytest.fixture
def client(redis_url: str) -> Iterator[Any]:
    made = connect(redis_url)
    yield made
    made.close()


def signature(app: Celery, name: str, queue: str) -> Signature:
    made: Signature = app.signature(name, queue=queue)
    return made


def start_chord(app: Celery) -> tuple[Signature, list[Context]]:
    """Send a chord of two parts; return its body, and the parts' requests as a worker has them."""
    body = signature(app, "shop.sum", BODIES)
    parts = [signature(app, "shop.part", "parts") for _ in range(2)]
    result = chord(parts, app=app)(body)
    frozen = body.clone()
    frozen.options["task_id"] = result.id
    requests = [
        Context(
            {"id": part.id, "group": result.parent.id, "group_index": number, "chord": dict(frozen)}
        )
        for number, part in enumerate(result.parent.children)
    ]
    return frozen, requests


def fail_publishing(app: Celery, patch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OperationalError("Connection closed by server.")

    patch.setattr(app.amqp, "_retry_publish", refuse)


def fail_joining(app: Celery, patch: pytest.MonkeyPatch) -> None:
    def refuse(**_: Any) -> None:
        raise RedisConnectionError("Connection reset by peer")

    patch.setattr(app.backend, "_chord_claim_extend_script", refuse)


@pytest.mark.parametrize("fail", [fail_publishing, fail_joining])
def test_a_body_that_could_not_be_sent_is_sent_when_its_part_is_counted_again(
    app: Celery, client: Any, fail: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend: Any = app.backend
    body, (first, last) = start_chord(app)
    group = last.group
    backend.on_chord_part_return(first, states.SUCCESS, 1)

    with monkeypatch.context() as patch:
        fail(app, patch)
        with pytest.raises(BROKER_ERRORS):
            backend.on_chord_part_return(last, states.SUCCESS, 2)
    assert backend.get_state(body.id) == states.PENDING
    assert client.llen(BODIES) == 0

    client.delete(backend.get_key_for_group(group, ".c"))  # the claim of the first attempt runs out
    backend.on_chord_part_return(last, states.SUCCESS, 2)
    assert client.llen(BODIES) == 1
    backend.on_chord_part_return(last, states.SUCCESS, 2)
    assert client.llen(BODIES) == 1
    client.delete(BODIES)


def test_a_chord_with_a_failed_part_fails_as_before(app: Celery) -> None:
    backend: Any = app.backend
    body, (first, last) = start_chord(app)
    backend.on_chord_part_return(first, states.SUCCESS, 1)
    backend.on_chord_part_return(last, states.FAILURE, ValueError("no"))
    assert backend.get_state(body.id) == states.FAILURE
