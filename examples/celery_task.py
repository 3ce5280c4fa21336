"""Your Celery app beside batchmill: send a job as a task, or submit one inside a task.

pip install 'celery[redis]'                            # beside batchmill itself
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

from batchmill.producer import Client, celery_url, find_broker

URL = find_broker()
MODEL = os.environ.get("BATCHMILL_MODEL", "demo")
app = Celery("shop", broker=celery_url(URL), backend=celery_url(URL))
app.conf.task_default_queue = "shop"
# `celery inspect conf` masks a password in `redis://user:password@…`, but not one in an option
# (`?password=…`): do not use that form.


def send(prompt: str) -> AsyncResult:
    """Send a job as a plain Celery task, whose result comes back like that of any task."""
    job = {"prompt": prompt, "max_tokens": 48}
    return app.send_task(
        "batchmill.generate", kwargs={"job": job}, queue=f"batchmill.{MODEL}.normal"
    )


@cache
def client() -> Client:
    """Return the client of this process, created by its first task: Celery has forked before."""
    return Client(URL)


@app.task(bind=True)
def describe(self: Any, thing: str) -> str:
    """Submit a job and return its id.

    A task that is delivered twice submits one job, because its id is the idempotency key. It does
    not wait for the result, which would block one of your worker processes until then.
    """
    job = client().submit(
        prompt=f"Describe {thing}.", max_tokens=48, idempotency_key=f"describe:{self.request.id}"
    )
    return job.id
