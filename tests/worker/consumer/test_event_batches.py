"""Events wait a moment for each other, and none waits forever."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from kombu.asynchronous import Hub

from batchmill.worker.consumer.app_factory import create_app
from batchmill.worker.consumer.event_batches import EventBatches, EventBatchStep
from batchmill.worker.settings import WorkerSettings


@pytest.fixture
def hub() -> Iterator[Any]:
    hub = Hub()
    yield hub
    hub.close()


def run_until_sent(hub: Any, sent: list[int], num_batches: int) -> None:
    for _ in range(100):
        if len(sent) >= num_batches:
            return
        hub.run_once()
    raise AssertionError(f"{len(sent)} batches were sent, not {num_batches}")


def test_events_of_one_moment_are_sent_together(hub: Any) -> None:
    buffered: list[int] = []
    sent: list[int] = []

    def flush() -> None:
        sent.append(len(buffered))
        buffered.clear()

    batches = EventBatches(hub, flush)
    hub.call_soon(lambda: None)
    hub.run_once()
    for number in range(10):
        buffered.append(number)
        batches.on_buffered()
        assert not sent
    run_until_sent(hub, sent, 1)

    buffered.append(11)
    batches.on_buffered()
    run_until_sent(hub, sent, 2)

    assert sent == [10, 1]


def test_an_event_of_another_thread_wakes_the_loop(hub: Any) -> None:
    sent: list[int] = []
    batches = EventBatches(hub, lambda: sent.append(1))
    hub.call_later(30, lambda: None)  # nothing else would wake it soon
    hub.call_soon(lambda: None)
    hub.run_once()

    threading.Thread(target=batches.on_buffered).start()
    run_until_sent(hub, sent, 1)


def test_events_after_the_consumers_stop_are_sent_without_its_timers(hub: Any) -> None:
    sent: list[int] = []
    dispatcher = SimpleNamespace(on_send_buffered=print, flush=lambda: sent.append(1))
    consumer = SimpleNamespace(hub=hub, event_dispatcher=dispatcher)
    step = EventBatchStep(consumer)
    step.start(consumer)
    dispatcher.on_send_buffered()
    hub.call_soon(lambda: None)
    hub.run_once()
    hub.timer.clear()  # as Celery 5.6 does before it stops its steps
    step.stop(consumer)
    assert sent == [1]

    dispatcher.on_send_buffered()
    run_until_sent(hub, sent, 2)

    dispatcher.on_send_buffered()
    step.shutdown(consumer)
    assert sent == [1, 1, 1], "the last events do not wait for a loop that has ended"


def test_the_workers_consumer_sends_in_batches() -> None:
    app = create_app(WorkerSettings(engine="stub", broker_url="redis://localhost"))
    assert EventBatchStep in app.steps["consumer"]
