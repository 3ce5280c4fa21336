"""Followers of a plain Celery task (chain, chord, link) run once elsewhere, with its result."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import chain, chord, group
from celery.exceptions import TaskRevokedError

from batchmill.producer.protocol import keys
from batchmill.producer.protocol.replies import JobState

from ...support.fences import fence_of
from ..announcements import QUEUE
from ..conftest import Mill
from ..stock_celery import StockWorker, shop_task


@pytest.fixture
def shop(mill: Mill, tmp_path: Path) -> Iterator[StockWorker]:
    worker = StockWorker(mill.url, tmp_path)
    yield worker
    worker.close()


def generate(mill: Mill, prompt: str = "x", **fields: Any) -> Any:
    """Return the signature of a batchmill task."""
    job = {"prompt": prompt, "seed": 7, "max_tokens": 6, **fields}
    return mill.celery.signature(keys.TASK_NAME, kwargs={"job": job}, queue=QUEUE)


def test_what_follows_a_task_runs_once_in_its_own_queue(mill: Mill, shop: StockWorker) -> None:
    mill.start_worker()
    length, failed = shop_task(mill.celery, "length"), shop_task(mill.celery, "failed")

    linked = generate(mill).apply_async(link=length)
    chained = chain(generate(mill), length).apply_async()
    body = chord([generate(mill), generate(mill)])(shop_task(mill.celery, "collect"))
    retried = generate(mill, "<<oom@1x1>>", retry={"backoff_s": 0})
    many = group(generate(mill), chain(retried, generate(mill, "y").set(immutable=True)))()
    broken = generate(mill, temperature=-1).apply_async(link_error=failed)

    text = linked.get(timeout=60)["text"]
    assert chained.get(timeout=60) == len(text)
    assert body.get(timeout=60) == [len(text)] * 2
    assert [result["status"] for result in many.get(timeout=60)] == ["completed"] * 2
    with pytest.raises(Exception, match="temperature"):
        broken.get(timeout=60)
    shop.wait_notes("failed", 1)
    shop.wait_notes("length", 2)
    assert linked.state == "SUCCESS"
    assert (shop.notes("length"), shop.notes("collect"), shop.notes("failed")) == (2, 1, 1)
    assert mill.state(linked.id) is JobState.COMPLETED
    assert mill.store.dead_letters() == []


def test_a_task_that_names_its_job_runs_it_whatever_the_tasks_before_return(mill: Mill) -> None:
    mill.start_worker()
    first, second = generate(mill), generate(mill, "another prompt")

    chained = chain(first, second).apply_async()
    body = chord([first, first])(second)

    texts = {result.get(timeout=60)["text"] for result in (chained, body)}
    assert texts == {second.apply_async().get(timeout=60)["text"]}


def test_a_queue_that_was_published_to_is_never_consumed(mill: Mill) -> None:
    worker = mill.start_worker()
    client = mill.store.client
    unnamed = generate(mill).apply_async(link=shop_task(mill.celery, "length", queue=None))
    generate(mill).apply_async(link=shop_task(mill.celery, "length")).get(timeout=60)
    unnamed.get(timeout=60)
    assert (client.llen("shop"), client.llen("celery")) == (1, 1)

    client.client_kill_filter(_type="normal", skipme=True)
    for number in range(3):  # its queues come before foreign ones, so each is a new look at all
        mill.wait_ended(mill.submit(f"after the reconnect {number}"))

    assert (client.llen("shop"), client.llen("celery")) == (1, 1), worker.log[-2000:]
    assert mill.store.dead_letters() == []


def start_workflows(mill: Mill) -> list[Any]:
    """Start a link, a chain and a chord of jobs, and wait until all of them generate."""
    length = shop_task(mill.celery, "length")
    linked = generate(mill, max_tokens=150).apply_async(link=length)
    chained = chain(generate(mill, max_tokens=150), length).apply_async()
    body = chord([generate(mill, max_tokens=150)] * 2)(shop_task(mill.celery, "collect"))
    ids = [linked.id, chained.parent.id, *(part.id for part in body.parent.children)]
    for job_id in ids:
        mill.wait_tokens(job_id, 4)
    return [linked, chained, body]


@pytest.mark.parametrize("fault", ["drain", "kill", "engine"])
def test_what_follows_survives(fault: str, mill: Mill, shop: StockWorker) -> None:
    worker = mill.start_worker(stub={"step_time_s": 0.01})
    linked, chained, body = start_workflows(mill)

    if fault == "engine":
        os.kill(mill.engine_pid(worker), signal.SIGKILL)
    else:
        worker.end(signal.SIGTERM if fault == "drain" else signal.SIGKILL)
        mill.start_worker("w2")

    text = linked.get(timeout=60)["text"]
    assert chained.get(timeout=60) == len(text)
    assert body.get(timeout=60) == [len(text)] * 2
    shop.wait_notes("length", 2)
    assert (shop.notes("length"), shop.notes("collect")) == (2, 1)
    assert linked.state == "SUCCESS"


def test_what_follows_is_sent_for_a_worker_that_died_before_its_report(
    mill: Mill, shop: StockWorker
) -> None:
    """Also where no Celery result is wanted, and although two workers sweep."""
    worker = mill.start_worker(stub={"step_time_s": 0.01})
    length, failed = shop_task(mill.celery, "length"), shop_task(mill.celery, "failed")
    ended = generate(mill, max_tokens=4000).apply_async(link=length, ignore_result=True)
    broken = generate(mill, max_tokens=4000).apply_async(link_error=failed)
    revoked = chord([generate(mill, max_tokens=4000)] * 2)(length)
    mill.wait_tokens(ended.id, 1)
    mill.wait_tokens(broken.id, 1)
    parts = [part.id for part in revoked.parent.children]
    for part_id in parts:
        mill.wait_tokens(part_id, 1)
    worker.end(signal.SIGKILL)
    text = '{"id": "x", "model": "demo", "status": "completed", "text": "all of it"}'
    error = '{"code": "numerical_error", "message": "not finite", "retryable": false}'
    fence = fence_of(mill.record(ended.id))
    mill.store.complete(ended.id, fence=fence, state=JobState.COMPLETED, result=text)
    fence = fence_of(mill.record(broken.id))
    mill.store.complete(broken.id, fence=fence, state=JobState.FAILED, error=error)
    for part_id in parts:
        mill.store.cancel(part_id)

    mill.start_worker("w2")
    mill.start_worker("w3")

    shop.wait_notes("length", 1)
    shop.wait_notes("failed", 1)
    with pytest.raises(TaskRevokedError, match="cancelled"):
        revoked.get(timeout=60)
    with pytest.raises(Exception, match="not finite"):
        broken.get(timeout=60)
    mill.wait_for(lambda: not mill.store.client.exists(keys.CELERY_ENDS), "all reports")
    assert (shop.notes("length"), shop.notes("failed"), ended.state) == (1, 1, "PENDING")
