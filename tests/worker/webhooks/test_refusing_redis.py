"""A Redis that refuses calls for a while: the deliverer lives, and its events arrive after it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from batchmill.producer.store.job_store import JobStore
from batchmill.worker.webhooks.local_receiver import ReceivedRequest, WebhookReceiver

from ...conftest import RedisServer
from ...support.server_refusals import REFUSALS_IN_TURN, refused
from ..webhook_deliverers import Deliverers, event_state, finish_job, wait_until


@pytest.fixture(scope="module")
def lasting_server() -> Iterator[RedisServer]:
    server = RedisServer("--appendonly", "yes")
    server.start()
    yield server
    server.close()


def is_delivered(store: JobStore, event_id: str) -> bool:
    return event_state(store, event_id) == "delivered"


@pytest.fixture(scope="module")
def check_refusal(lasting_server: RedisServer) -> Iterator[Callable[[str], None]]:
    """A check with one deliverer for all refusals."""
    deliverers, store = Deliverers(lasting_server.url), JobStore.from_url(lasting_server.url)
    process = deliverers.start()

    def check(word: str) -> None:
        posted, released = threading.Event(), threading.Event()

        def respond(request: ReceivedRequest) -> int:
            posted.set()
            released.wait(120)
            return 200

        with WebhookReceiver(respond) as receiver:
            during = finish_job(store, receiver.url, f"during-{word}")
            assert posted.wait(120)
            with refused(word, lasting_server):
                released.set()  # the outcome of the attempt cannot be written now
                time.sleep(1)
            after = finish_job(store, receiver.url, f"after-{word}")
            for event_id in (during, after):
                wait_until(partial(is_delivered, store, event_id), event_id, timeout_s=120)
            sent = {request.headers["webhook-id"] for request in receiver.requests}
        assert sent == {during, after}
        assert process.poll() is None

    yield check
    store.close()
    deliverers.close()


@pytest.mark.parametrize("word", REFUSALS_IN_TURN)
def test_a_deliverer_outlives_a_server_that_refuses_calls(
    check_refusal: Callable[[str], None], word: str
) -> None:
    check_refusal(word)
