"""Celery's `revoke`: cancels the job in its record, and forgets the revocation."""

from __future__ import annotations

from typing import Any

import structlog
from celery.worker import state as worker_state
from celery.worker.control import Panel
from celery.worker.control import revoke as celery_revoke
from redis.exceptions import RedisError

from batchmill.producer.protocol import keys
from batchmill.producer.protocol.replies import CancelStatus, JobState
from batchmill.producer.store.job_store import JobStore

_log = structlog.stdlib.get_logger("batchmill.revocation")


def install_revoke(store: JobStore) -> None:
    """Make this worker's `revoke` cancel stored jobs at once.

    Celery's own remembers the id for three hours and discards the task at its receipt. It would
    discard a retry of the job as well, on every worker that received the revocation. And every
    other worker would store REVOKED for a running task, which continues without `terminate`.
    """

    def revoke(state: Any, task_id: Any, terminate: bool = False, **options: Any) -> Any:
        given = [task_id] if isinstance(task_id, str) else list(task_id or ())
        running = [each for each in given if _is_running(store, each)]
        waiting = [each for each in given if each not in running]
        # Before Celery stores REVOKED: whoever sees that may retry the job at once.
        stored = [each for each in waiting if _cancel(store, each, terminate=terminate)]
        reply = celery_revoke(state, given if terminate else waiting, terminate, **options)
        if terminate:
            stored += [each for each in running if _cancel(store, each, terminate=True)]
        for job_id in stored:
            worker_state.revoked.discard(job_id)
        return reply

    Panel.data["revoke"] = revoke


def _is_job_id(value: Any) -> bool:
    return isinstance(value, str) and keys.is_job_id(value)


def _is_running(store: JobStore, task_id: Any) -> bool:
    try:
        return _is_job_id(task_id) and store.state(task_id) is JobState.IN_PROGRESS
    except RedisError:
        return False


def _cancel(store: JobStore, job_id: Any, *, terminate: bool) -> bool:
    """Cancel a job, and return whether its record knows: then Celery may forget the id."""
    if not _is_job_id(job_id):
        return False
    try:
        job = store.load(job_id)
        if job is None:
            return False  # a plain task without a record: Celery discards it at its receipt
        if job.state is JobState.IN_PROGRESS and not terminate:
            status = CancelStatus.ALREADY_TERMINAL  # as in Celery, a running task continues
        else:
            status = store.cancel(job_id).status
    except RedisError as error:
        _log.warning("revoke_not_stored", job_id=job_id, error=type(error).__name__)
        return False
    _log.info("job_revoked", job_id=job_id, status=status.value)
    return True
