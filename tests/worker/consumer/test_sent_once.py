"""A task that follows a job is pushed once, although Celery and the sweep send it again."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from celery import Celery

from batchmill.producer.store.connection import connect
from batchmill.worker.chaos.links import Link, Links
from batchmill.worker.consumer.app_factory import create_app
from batchmill.worker.consumer.workflow import read_workflow
from batchmill.worker.settings import WorkerSettings

from ...conftest import RedisServer
from ...support.processes import free_port, wait_until

LIST = "shop"


@pytest.fixture(scope="module")
def disturbed() -> Iterator[tuple[Link, RedisServer]]:
    """A server, and an address of it that can be disturbed."""
    port = free_port()
    server = RedisServer("--port", str(port), "--bind", "127.0.0.1")
    server.start()
    links = Links(f"redis://127.0.0.1:{port}/0")
    yield links.add(), server
    links.close()
    server.close()


@pytest.fixture
def link(disturbed: tuple[Link, RedisServer]) -> Link:
    return disturbed[0]


@pytest.fixture
def client(disturbed: tuple[Link, RedisServer]) -> Iterator[Any]:
    """A client that no disturbance reaches."""
    made = connect(disturbed[1].url)
    yield made
    made.close()


@pytest.fixture
def app(link: Link) -> Iterator[Celery]:
    """The app of a worker, which sends as the worker does once its pool has started."""
    made = create_app(WorkerSettings(broker_url=link.url))
    made.conf.broker_write_url = made.conf.broker_read_url
    yield made
    made.close()


def send(app: Celery, task_id: str, **options: Any) -> None:
    policy = {"max_retries": 50, "interval_start": 0.02, "interval_step": 0, "interval_max": 0.02}
    app.send_task(
        "shop.length", queue=LIST, task_id=task_id, retry=True, retry_policy=policy, **options
    )


def test_a_task_whose_reply_was_lost_is_pushed_once(app: Celery, link: Link, client: Any) -> None:
    send(app, "first")
    before = client.llen(LIST)

    def restore() -> None:
        wait_until(lambda: bool(client.llen(LIST) > before), "the push")
        link.cut_replies(0.0)

    link.cut_replies(1.0)
    thread = threading.Thread(target=restore)
    thread.start()
    send(app, "second")
    thread.join()

    assert client.llen(LIST) == before + 1


def test_a_task_that_another_reporter_sends_again_is_pushed_once(app: Celery, client: Any) -> None:
    before = client.llen(LIST)
    send(app, "third")
    send(app, "third")
    assert client.llen(LIST) == before + 1

    send(app, "third", retries=1)  # a retry of the same task is another sending
    send(app, "fourth")
    assert client.llen(LIST) == before + 3


def workflow_of(*callbacks: dict[str, Any]) -> str:
    made = read_workflow({"id": "t1"}, {"callbacks": list(callbacks)})
    assert made is not None
    return made.embed


def signature(**options: Any) -> dict[str, Any]:
    return {"task": "shop.length", "args": [], "kwargs": {}, "options": options}


def test_a_callback_gets_the_same_id_at_every_sending_unless_it_has_one() -> None:
    first = workflow_of(signature(), signature(queue="shop"), signature(task_id="own"))
    assert first == workflow_of(signature(), signature(queue="shop"), signature(task_id="own"))

    callbacks = json.loads(first)["callbacks"]
    ids = [callback["options"]["task_id"] for callback in callbacks]
    assert len(set(ids)) == 3
    assert ids[2] == "own"
    assert callbacks[1]["options"]["queue"] == "shop"


def test_a_group_in_a_link_is_left_as_it_is() -> None:
    group = {**signature(), "task": "celery.group", "subtask_type": "group"}
    assert json.loads(workflow_of(group))["callbacks"] == [group]
