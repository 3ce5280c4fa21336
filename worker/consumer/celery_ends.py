"""Tells Celery how plain Celery tasks ended where no worker was there to do it."""

from __future__ import annotations

import json
from typing import Any

import structlog
from celery import states
from redis.exceptions import RedisError, ResponseError

from batchmill.producer.protocol.replies import JobState
from batchmill.producer.results import JobError
from batchmill.producer.store.connection import is_servers_fault
from batchmill.producer.store.job_store import JobStore
from batchmill.worker.errors import JobFailed

_log = structlog.stdlib.get_logger("batchmill.celery_ends")
#: A worker that ends a job tells Celery by itself; only then is it looked after here.
_GRACE_MS = 2_000
#: Jobs looked after in one call.
_LIMIT = 200


class CeleryEnds:
    """Writes Celery results that are missing.

    A job that is cancelled or expires while it waits ends without a worker, and one whose worker
    dies right after the end was written has nobody left to tell Celery. Whoever sent it as a plain
    Celery task would wait on its `AsyncResult` for ever. Any number of workers may do this at once:
    a result that is there is left as it is.
    """

    def __init__(self, store: JobStore, backend: Any) -> None:
        """Bind to the job store and to the app's result backend."""
        self._store = store
        self._backend = backend

    def tell(self) -> None:
        """Write the results that are missing.

        Raises:
            redis.exceptions.RedisError: Redis did not answer; the next call makes up for it.
        """
        for job_id in self._store.celery_ends(limit=_LIMIT, grace_ms=_GRACE_MS):
            try:
                self._tell(job_id)
            except RedisError as error:
                if not isinstance(error, ResponseError) or is_servers_fault(error):
                    raise
                _log.error("celery_end_unusable", job_id=job_id)
            except Exception:
                # One job's data brings it out; the others must not wait for it.
                _log.exception("celery_end_failed", job_id=job_id)
            self._store.celery_end_told(job_id)

    def _tell(self, job_id: str) -> None:
        known = self._backend.get_task_meta(job_id, cache=False)["status"]
        record = self._store.load(job_id)
        if known in states.READY_STATES or record is None or not record.state.is_terminal:
            return
        _log.info("celery_told", job_id=job_id, state=record.state.value)
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
