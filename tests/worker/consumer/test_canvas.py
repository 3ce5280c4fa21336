"""What follows a plain Celery task (chain, chord, link) runs elsewhere, once, with its result."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import chain, chord, group

from batchmill.producer.protocol import keys
from batchmill.producer.protocol.replies import JobState

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
    many = group(generate(mill), chain(generate(mill), generate(mill, "y").set(immutable=True)))()
    broken = generate(mill, temperature=-1).apply_async(link_error=failed)

    text = linked.get(timeout=20)["text"]
    assert chained.get(timeout=20) == len(text)
    assert body.get(timeout=20) == [len(text)] * 2
    assert [result["status"] for result in many.get(timeout=20)] == ["completed"] * 2
    with pytest.raises(Exception, match="temperature"):
        broken.get(timeout=20)
    shop.wait_notes("failed", 1)
    shop.wait_notes("length", 2)
    assert linked.state == "SUCCESS"
    assert (shop.notes("length"), shop.notes("collect"), shop.notes("failed")) == (2, 1, 1)
    assert mill.state(linked.id) is JobState.COMPLETED
    assert mill.store.dead_letters() == []


def test_a_queue_that_was_published_to_is_never_consumed(mill: Mill) -> None:
    worker = mill.start_worker()
    client = mill.store.client
    unnamed = generate(mill).apply_async(link=shop_task(mill.celery, "length", queue=None))
    generate(mill).apply_async(link=shop_task(mill.celery, "length")).get(timeout=20)
    unnamed.get(timeout=20)
    assert (client.llen("shop"), client.llen("celery")) == (1, 1)

    client.client_kill_filter(_type="normal", skipme=True)
    for number in range(3):  # its queues come before foreign ones, so each is a new look at all
        mill.wait_ended(mill.submit(f"after the reconnect {number}"))

    assert (client.llen("shop"), client.llen("celery")) == (1, 1), worker.log[-2000:]
    assert mill.store.dead_letters() == []
