"""Writes the missing Celery results of jobs that ended without a worker to report them."""

from __future__ import annotations

import json
from typing import Any

import structlog
from celery import states
from redis.exceptions import RedisError

from batchmill.producer.protocol.replies import JobState
from batchmill.producer.results import JobError
from batchmill.producer.store.job_store import JobStore
from batchmill.worker.errors import JobFailed
from batchmill.worker.jobs.unusable_record import is_unusable_record

_log = structlog.stdlib.get_logger("batchmill.missing_results")
#: A worker that ends a job reports to Celery by itself, within this time.
_GRACE_MS = 2_000
#: Jobs per call.
_LIMIT = 200


class MissingResults:
    """Writes Celery results that are missing.

    A job that is cancelled or expires while it waits ends without a worker, and a worker may die
    right after it wrote a job's end. The sender of the plain Celery task would then wait on its
    `AsyncResult` forever. Any number of workers may do this at once: an existing result stays as
    it is.
    """

    def __init__(self, store: JobStore, backend: Any) -> None:
        """Bind to the job store and to the app's result backend."""
        self._store = store
        self._backend = backend

    def write_missing(self) -> None:
        """Write the results that are missing.

        Raises:
            redis.exceptions.RedisError: Redis did not reply; the next call makes up for it.
        """
        for job_id in self._store.celery_ends(limit=_LIMIT, grace_ms=_GRACE_MS):
            try:
                self._write(job_id)
            except RedisError as error:
                if not is_unusable_record(error):
                    raise
                _log.error("celery_result_unusable", job_id=job_id)
            except Exception:
                # A bug that one job's data triggers; the other jobs must not wait for it.
                _log.exception("celery_result_failed", job_id=job_id)
            self._store.celery_end_told(job_id)

    def _write(self, job_id: str) -> None:
        known = self._backend.get_task_meta(job_id, cache=False)["status"]
        record = self._store.load(job_id)
        if known in states.READY_STATES or record is None or not record.state.is_terminal:
            return
        _log.info("celery_result_written", job_id=job_id, state=record.state.value)
        if record.state is JobState.COMPLETED and record.result is not None:
            self._backend.store_result(job_id, json.loads(record.result), states.SUCCESS)
            return
        error = JobError(code=record.state.value, message=f"the job {record.state.value}")
        if record.error is not None:
            error = JobError.model_validate_json(record.error)
        if record.state is JobState.FAILED:
            failure = JobFailed(error.code, error.message)
            self._backend.store_result(job_id, failure, states.FAILURE)
        else:
            self._backend.mark_as_revoked(job_id, f"{error.code}: {error.message}")
