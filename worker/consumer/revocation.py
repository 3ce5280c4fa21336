"""Celery's `revoke` and `revoke_by_stamped_headers`: jobs can be retried after a revocation."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, cast

import structlog
from celery.worker import state as worker_state
from celery.worker.control import Panel
from celery.worker.control import revoke as celery_revoke
from celery.worker.control import revoke_by_stamped_headers as celery_revoke_stamps
from kombu.utils.functional import maybe_list
from redis.exceptions import RedisError

from batchmill.producer.protocol import keys
from batchmill.producer.protocol.replies import CancelStatus, JobState
from batchmill.producer.store.job_store import JobStore

_log = structlog.stdlib.get_logger("batchmill.revocation")
#: When this worker was told to revoke a stamp, Unix milliseconds, by header and value. Kept as long
#: as Celery keeps the stamp: until the worker ends.
_told_at_ms: dict[tuple[str, str], int] = {}


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

    def revoke_stamps(state: Any, headers: Any, terminate: bool = False, **options: Any) -> Any:
        reply = celery_revoke_stamps(state, headers, terminate, **options)
        if isinstance(headers, list):  # as a command line gives them
            headers = {header.split("=")[0]: header.split("=")[1] for header in headers}
        now_ms = _now_ms(store)
        for header, values in headers.items():
            for value in maybe_list(values) or ():
                _told_at_ms[header, repr(value)] = now_ms
        return reply

    Panel.data["revoke"] = revoke
    Panel.data["revoke_by_stamped_headers"] = revoke_stamps


def stamps_revoked_at_ms(stamps: Mapping[str, Any]) -> int | None:
    """Return when this worker was last told to revoke one of a task's stamps; None if never.

    Args:
        stamps: value, or list of values, of each header.
    """
    places = ((name, repr(value)) for name in stamps for value in maybe_list(stamps[name]) or ())
    return max((_told_at_ms[place] for place in places if place in _told_at_ms), default=None)


def _now_ms(store: JobStore) -> int:
    try:
        seconds, microseconds = cast(Any, store.client.time())  # the clock of records
    except RedisError:
        return int(time.time() * 1000)
    return int(seconds * 1000 + microseconds // 1000)


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
