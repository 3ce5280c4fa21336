"""From a plain Celery task, whose message holds a whole job, to the job that is stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from batchmill.producer.errors import JobRejected
from batchmill.producer.job.validation import parse_job
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls.new_job import NewJob
from batchmill.producer.store.submission import prepare
from batchmill.producer.tracing.traceparent import TRACEPARENT, read_traceparent
from batchmill.worker.settings import WorkerSettings

from .queue_message import QueueMessage
from .workflow import read_workflow

#: Celery's names of the arguments of `batchmill.generate`, in order.
_ARGUMENTS = ("job", "v")


def read_job(message: QueueMessage, settings: WorkerSettings) -> NewJob:
    """Return the job in a message, with its place in a workflow.

    Raises:
        JobRejected: the document cannot be run.
    """
    headers = message.headers
    job = parse_job(_document(message))
    served = settings.served_name
    if job.model not in (None, served):
        raise JobRejected(
            f"model is {job.model!r}; the workers of this queue serve {served!r}: "
            f"send the task to {keys.queue_name(str(job.model), job.priority)}",
            param="model",
        )
    new = prepare(job.model_copy(update={"model": served}), settings, job_id=headers["id"])
    workflow = read_workflow(headers, message.embed)
    starts = (at for at in (message.not_before_ms, new.not_before_ms) if at is not None)
    return replace(
        new,
        celery_result=not headers.get("ignore_result"),
        celery_headers="" if workflow is None else workflow.headers,
        celery_embed="" if workflow is None else workflow.embed,
        not_before_ms=max(starts, default=None),
        start_by_ms=message.expires_ms,
        message_priority=_priority(message.message),
        traceparent=new.traceparent or read_traceparent(headers.get(TRACEPARENT)),
    )


def _document(message: QueueMessage) -> Mapping[str, Any]:
    """Return the job document in a task's arguments."""
    named = dict(zip(_ARGUMENTS, message.args, strict=False)) | message.kwargs
    document, version = named.pop("job", None), named.pop("v", keys.PROTOCOL_VERSION)
    if named or len(message.args) > len(_ARGUMENTS) or not isinstance(document, Mapping):
        raise JobRejected(
            f"{keys.TASK_NAME} takes `job`: a job document (an object), or the id of a stored job",
            param="job",
        )
    if version not in keys.SUPPORTED_VERSIONS:
        raise JobRejected(
            f"v is {version!r}; this worker supports {keys.SUPPORTED_VERSIONS}", param="v"
        )
    return document


def _priority(message: Mapping[str, Any]) -> int:
    """Return Celery's priority of a message: in Redis 0 is the highest, and 9 the lowest."""
    value = message["properties"].get("priority")
    return min(max(value, 0), 9) if type(value) is int else 0
