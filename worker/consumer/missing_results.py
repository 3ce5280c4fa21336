"""Reports to Celery the ends of jobs that ended without a worker to report them."""

from __future__ import annotations

from typing import Any

import structlog
from celery import Celery, states
from celery.app.task import Context
from celery.app.trace import trace_task
from celery.exceptions import BackendError
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from batchmill.producer.errors import ContentChanged
from batchmill.producer.protocol.content import UnreadableContent
from batchmill.producer.protocol.keys import TASK_NAME
from batchmill.producer.protocol.records import JobRecord
from batchmill.producer.protocol.replies import JobState
from batchmill.producer.result_parts import JobError
from batchmill.producer.store.job_store import JobStore
from batchmill.worker.jobs.fleet_turns import Turn
from batchmill.worker.jobs.outcome import Outcome
from batchmill.worker.jobs.unusable_record import is_unusable_record

from .celery_task import END_LEASE_MS, OUTCOME_KEY
from .workflow import workflow_request

_log = structlog.stdlib.get_logger("batchmill.missing_results")
#: A worker that ends a job reports to Celery by itself, within this time.
_GRACE_MS = 2_000
#: Jobs per call.
_LIMIT = 200


class MissingResults:
    """Writes Celery results that are missing, and sends the tasks that follow in a workflow.

    A job that is cancelled or expires while it waits ends without a worker, and a worker may die
    right after it wrote a job's end. The sender of the plain Celery task would then wait on its
    `AsyncResult` forever. Any number of workers may do this at once: each end is taken by one of
    them, and an existing result stays as it is.
    """

    def __init__(
        self, store: JobStore, app: Celery, *, session: str = "", turn: Turn | None = None
    ) -> None:
        """Bind to the job store and to the app with the result backend.

        Args:
            store: holds the ends.
            app: of the worker.
            session: this run of the worker; if it is lost, others write what it has taken.
            turn: of looking for new ends; None looks each time.
        """
        self._store = store
        self._app = app
        self._session = session
        self._turn = turn
        #: Jobs whose chord another process is about to continue; they are looked at again.
        self._open: list[str] = []

    def write_missing(self) -> None:
        """Write the results that are missing.

        Raises:
            redis.exceptions.RedisError: Redis did not reply; the next call makes up for it.
        """
        ends: list[str] = []
        if self._turn is None or self._turn.is_due():
            ends = self._store.take_celery_ends(
                limit=_LIMIT, grace_ms=_GRACE_MS, lease_ms=END_LEASE_MS, session=self._session
            )
        ends, self._open = list(dict.fromkeys([*self._open, *ends])), []
        for job_id in ends:
            try:
                if not self._write(job_id):
                    self._open.append(job_id)
                    continue
            except (OperationalError, BackendError) as error:
                _log.warning("celery_report_failed", job_id=job_id, error=type(error).__name__)
                continue  # the lease on the end runs out, and it is taken again
            except UnreadableContent as error:
                _log.warning("celery_result_sealed", job_id=job_id, reason=str(error))
                continue  # as above; a worker that can read it reports it
            except RedisError as error:
                if not is_unusable_record(error):
                    raise
                _log.error("celery_result_unusable", job_id=job_id)
            except Exception:
                # A bug that one job's data triggers; the other jobs must not wait for it.
                _log.exception("celery_result_failed", job_id=job_id)
            self._store.drop_celery_end(job_id)

    def _write(self, job_id: str) -> bool:
        """Report an end, and return whether that is all: a chord may have to be looked at again."""
        backend: Any = self._app.backend
        known = backend.get_task_meta(job_id, cache=False)["status"]
        record = self._store.load(job_id)
        if record is None or not record.state.is_terminal:
            return True
        if record.unreadable is not None and not isinstance(record.unreadable, ContentChanged):
            raise record.unreadable
        request = workflow_request(record)
        if known in states.READY_STATES:
            self._complete_chord(record, known, request)
        else:
            self._report(record, request)
        return not self._is_chord_claimed(request)

    def _report(self, record: JobRecord, request: dict[str, Any]) -> None:
        backend: Any = self._app.backend
        job_id = record.id
        _log.info("celery_result_written", job_id=job_id, state=record.state.value)
        error = _error_of(record)
        if record.state in (JobState.CANCELLED, JobState.EXPIRED):
            backend.mark_as_revoked(
                job_id,
                f"{error.code}: {error.message}",
                request=Context(request),
                store_result=record.celery_result,
            )
            return
        result = None if record.result is None else record.result.decode()
        state = record.state
        if record.unreadable is not None:
            state, error = (
                JobState.FAILED,
                JobError(code="integrity", message=str(record.unreadable)),
            )
        request[OUTCOME_KEY] = Outcome(state, result, (error.code, error.message))
        # Celery's own tracer: result, callbacks, chain, chord and errbacks as from any worker.
        task = self._app.tasks[TASK_NAME]
        info = trace_task(task, job_id, (), {}, request, app=self._app).info
        error_of_report = getattr(info, "retval", None)
        if isinstance(error_of_report, (RedisError, OperationalError, BackendError)):
            raise error_of_report  # swallowed by the tracer: the end is not reported yet

    def _complete_chord(self, record: JobRecord, state: str, request: dict[str, Any]) -> None:
        """Count a part of a chord again: the reporter may have died after it stored the result."""
        if request.get("chord"):
            backend: Any = self._app.backend
            result = backend.get_result(record.id)
            backend.on_chord_part_return(Context(request), state, result)

    def _is_chord_claimed(self, request: dict[str, Any]) -> bool:
        """Return whether a process is about to send the body of the job's chord.

        If that process is gone, nothing sends the body until a part is counted again after its
        claim has run out. A chord that has failed keeps its claim, and loses its size.
        """
        group = request.get("group")
        if not (request.get("chord") and group):
            return False
        backend: Any = self._app.backend
        claim, size = backend.client.mget(
            [backend.get_key_for_group(group, part) for part in (".c", ".s")]
        )
        return claim not in (None, b"done") and size is not None


def _error_of(record: JobRecord) -> JobError:
    if record.error is not None:
        return JobError.model_validate_json(record.error)
    return JobError(code=record.state.value, message=f"the job {record.state.value}")
