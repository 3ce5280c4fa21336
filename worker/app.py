"""The Celery app for `celery -A batchmill.worker.app …` and Flower, from the environment."""

from __future__ import annotations

from batchmill.worker.consumer.app_factory import create_app

from .settings import WorkerSettings

app = create_app(WorkerSettings())
