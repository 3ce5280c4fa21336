"""Reports a refused message to the sender of the plain Celery task, as a stock worker does."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import structlog
from celery import Celery, states
from celery.app.task import Context

from batchmill.producer.store.job_store import JobStore
from batchmill.worker.errors import JobFailed, MalformedMessage
from batchmill.worker.jobs.outcome import Outcome, Workflow

from .queue_message import MAX_ID_CHARS, read_body

_log = structlog.stdlib.get_logger("batchmill.refused_task")


@dataclass(slots=True, eq=False)
class RefusedTask:
    """A task whose message became a dead letter; its only outcome is FAILURE."""

    task_id: str
    #: Headers and embedded signatures of the message, as far as they could be read.
    request: dict[str, Any]
    error: MalformedMessage
    app: Celery
    store: JobStore
    time_limit_s: float | None = None
    workflow: Workflow | None = None
    not_before_ms: int | None = None
    expires_ms: int | None = None

    def accept(self) -> None:
        """Do nothing: the message has been taken off its queue."""

    def drop(self) -> None:
        """Do nothing."""

    def finish(self, outcome: Outcome) -> None:
        """Store FAILURE with the reason, unless the id has a job or a result. Blocks on Redis."""
        backend: Any = self.app.backend
        known = backend.get_task_meta(self.task_id, cache=False)["status"]
        if known in states.READY_STATES or self.store.load(self.task_id) is not None:
            return
        _log.info("task_refused", task_id=self.task_id, code=self.error.code)
        failure = JobFailed(self.error.code, str(self.error))
        request = Context({"delivery_info": {}, **self.request})
        wants_result = not self.request.get("ignore_result")
        backend.mark_as_failure(self.task_id, failure, request=request, store_result=wants_result)


def read_sender(element: bytes) -> dict[str, Any] | None:
    """Return the request in a refused element, or None if no sender can wait for its result."""
    try:
        message = json.loads(element)
        headers = message["headers"] or {}
    except (ValueError, RecursionError, TypeError, KeyError):
        return None
    request = dict(headers) if isinstance(headers, dict) else {}
    try:
        parts = read_body(message)
    except (MalformedMessage, KeyError, TypeError, AttributeError):
        parts = None
    if isinstance(parts, dict) and not request:
        request = parts  # Celery's protocol 1 has all of it in the body
    elif isinstance(parts, list) and parts and isinstance(parts[-1], dict):
        request |= parts[-1]
    return request if _is_usable_id(request.get("id")) else None


def _is_usable_id(value: Any) -> bool:
    if not isinstance(value, str) or not 0 < len(value) <= MAX_ID_CHARS:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
