"""A stock Celery worker as a second process, which runs what follows a batchmill task."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from celery import Celery
from redis import Redis

from batchmill.producer.broker_url import celery_url, redis_url

#: The queue that the stock worker consumes.
SHOP_QUEUE = "shop"
_APP = """
import json
from celery import Celery
app = Celery("shop", broker={url!r}, backend={url!r})
app.conf.task_default_queue = "shop"


def note(name, value):
    app.backend.client.rpush("shop:" + name, json.dumps(value))


@app.task(name="shop.length")
def length(result):
    note("length", result["text"])
    return len(result["text"])


@app.task(name="shop.collect")
def collect(results):
    note("collect", len(results))
    return [len(result["text"]) for result in results]


@app.task(name="shop.failed")
def failed(task_id):
    note("failed", task_id)
"""


class StockWorker:
    """A Celery worker without batchmill, on the queue `shop`."""

    def __init__(self, url: str, folder: Path) -> None:
        self._client: Any = Redis.from_url(redis_url(url))
        (folder / "shop.py").write_text(_APP.format(url=celery_url(url)))
        self._log_path = folder / "shop.log"
        options = ("--pool=solo", "-Q", SHOP_QUEUE, "-n", "shop@test", "-l", "WARNING")
        with self._log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "celery", "-A", "shop", "worker", *options],
                env=os.environ | {"PYTHONPATH": str(folder), "PYTHONSAFEPATH": ""},
                stdout=log,
                stderr=log,
            )

    def notes(self, name: str) -> int:
        """Return how often a task of the stock worker ran."""
        return int(self._client.llen(f"shop:{name}"))

    def wait_notes(self, name: str, num_runs: int, timeout_s: float = 60.0) -> None:
        """Wait until a task of the stock worker has run so often."""
        deadline = time.monotonic() + timeout_s
        while self.notes(name) < num_runs:
            assert time.monotonic() < deadline, self._log_path.read_text()[-3000:]
            time.sleep(0.02)

    def close(self) -> None:
        """End the worker."""
        self.process.kill()
        self.process.wait()
        self._client.close()


def shop_task(app: Celery, name: str, queue: str | None = SHOP_QUEUE) -> Any:
    """Return a signature of a task of the stock worker."""
    return app.signature(f"shop.{name}", **({} if queue is None else {"queue": queue}))
