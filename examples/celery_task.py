"""A Celery app of your own beside batchmill: send a job as a task, or submit one inside a task.

export BATCHMILL_BROKER_URL=redis://127.0.0.1:6379/0
celery -A celery_task worker --concurrency 2          # in this folder: your workers, not ours
python -c "from celery_task import describe; print(describe.delay('a water mill').get(timeout=60))"
"""

from __future__ import annotations

import os
from functools import cache
from typing import Any

from celery import Celery
from celery.result import AsyncResult

from batchmill.producer import Client
from batchmill.producer.broker_url import celery_url, find_broker

URL = find_broker()
MODEL = os.environ.get("BATCHMILL_MODEL", "demo")
app = Celery("shop", broker=celery_url(URL), backend=celery_url(URL))
app.conf.task_default_queue = "shop"
# A password in `redis://user:password@…` is masked in `celery inspect conf`; one that is written as
# an option (`?password=…`) is not: do not write it so.


def send(prompt: str) -> AsyncResult:
    """Send a job as a plain Celery task: its result comes back as any task's."""
    job = {"prompt": prompt, "max_tokens": 48}
    return app.send_task(
        "batchmill.generate", kwargs={"job": job}, queue=f"batchmill.{MODEL}.normal"
    )


@cache
def client() -> Client:
    """The client of this process, made when a task first asks for it: Celery has forked by then."""
    return Client(URL)


@app.task(bind=True)
def describe(self: Any, thing: str) -> str:
    """Submit a job and return its id.

    A task that is delivered twice makes one job, because its id is the idempotency key. It does not
    wait for the result: that would hold one of your worker's processes for as long as it takes.
    """
    job = client().submit(
        prompt=f"Describe {thing}.", max_tokens=48, idempotency_key=f"describe:{self.request.id}"
    )
    return job.id
