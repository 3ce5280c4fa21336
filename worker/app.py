"""The Celery app for `celery -A batchmill.worker.app …` and Flower, from the environment."""

from __future__ import annotations

from typing import Any

from celery import signals

from batchmill.producer.errors import BatchmillError
from batchmill.worker.consumer.app_factory import create_app
from batchmill.worker.consumer.own_shard import check_own_broker

from .settings import WorkerSettings

_settings = WorkerSettings()
app = create_app(_settings)


@signals.celeryd_init.connect
def _check_broker(**_: Any) -> None:
    """Check the broker of a worker, as `batchmill worker` does, before Celery waits for it."""
    try:
        check_own_broker(_settings)
    except BatchmillError as error:  # Celery logs other errors of listeners, and starts the worker
        raise SystemExit(f"error: {error}") from error
