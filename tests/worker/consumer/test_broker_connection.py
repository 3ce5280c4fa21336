"""After an outage, the consumer connects to the broker again within seconds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from kombu.exceptions import OperationalError

from batchmill.worker.consumer.app_factory import create_app
from batchmill.worker.consumer.broker_connection import MAX_WAIT_S
from batchmill.worker.settings import WorkerSettings

from ...support.processes import free_port


def test_no_wait_of_the_consumer_is_longer_than_two_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slept: list[float] = []
    monkeypatch.setattr("kombu.utils.functional.sleep", slept.append)
    url = f"redis://127.0.0.1:{free_port()}/0"
    app: Any = create_app(WorkerSettings(engine="stub", broker_url=url))
    waits: list[float] = []

    with pytest.raises(OperationalError):
        app.connection_for_read().ensure_connection(
            lambda error, wait_s: waits.append(wait_s), 20, callback=lambda: None
        )

    assert waits[0] < 1
    assert max(waits) == MAX_WAIT_S == 2
    assert len(waits) == 20


@pytest.fixture
def producer(redis_url: str) -> Iterator[Any]:
    """A producer as the worker publishes with, of a pool of its own."""
    app: Any = create_app(WorkerSettings(engine="stub", broker_url=redis_url))
    pool = app.connection_for_write().Pool(limit=1)
    with pool.acquire(block=True) as connection:
        yield connection.Producer()
    pool.force_close_all()


def test_a_task_is_sent_although_kombu_has_closed_the_channel(producer: Any) -> None:
    queue = f"follow-up-{uuid4()}"
    producer.publish({}, routing_key=queue, retry=True)
    producer.channel.close()  # as kombu does after a cut
    producer.publish({}, routing_key=queue, retry=True)
    assert producer.channel.client.llen(queue) == 2


def test_a_mistake_in_a_publication_is_not_taken_for_a_cut(producer: Any) -> None:
    def publish() -> None:
        raise AttributeError("a mistake")

    with pytest.raises(AttributeError, match="a mistake"):
        producer.connection.ensure(producer, publish, max_retries=3)()
