"""Celery tasks for tests that run without Celery."""

from __future__ import annotations

from batchmill.worker.consumer.celery_task import CeleryTask


def ignore(*_: object) -> None:
    """Do nothing, as a callback."""


def a_task(job_id: str) -> CeleryTask:
    """Return a task that announces a job and reports to nothing."""
    request = {"args": [], "kwargs": {"job": job_id, "v": 1}}
    return CeleryTask(job_id, ignore, ("task", job_id, request), ignore, ignore, ignore)
