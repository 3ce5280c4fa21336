"""From checked batch requests to script calls, and from their replies to errors."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import TypeVar

from batchmill.producer.errors import BatchmillError, IdempotencyConflict, QueueFull
from batchmill.producer.job.batch import BATCH_EVENTS, BatchError, BatchRequest
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls import batches as batch_scripts
from batchmill.producer.protocol.calls.batches import CreateReply, SealReply
from batchmill.producer.protocol.calls.call import Argument, Call
from batchmill.producer.protocol.content import Fingerprint
from batchmill.producer.protocol.replies import CancelStatus
from batchmill.producer.settings import ProducerSettings
from batchmill.producer.tracing.sending import current_traceparent

from .reply_errors import batch_closed_error, unknown_batch_error
from .submission import check_webhook

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class OpenBatch:
    """A batch that still takes lines."""

    batch_id: str
    #: Jobs that have not ended by then expire; None is never. Milliseconds of unix time.
    deadline_at_ms: int | None
    #: Trace that its lines continue, unless they have their own; None without one.
    traceparent: str | None = None


@dataclass(frozen=True, slots=True)
class BatchOrigin:
    """How a batch came by the gateway, which reads its lines from a file."""

    tenant: str
    #: Id of the API key; empty without one.
    api_key: str
    #: JSON: the file, the endpoint, and what else the caller's API reports.
    gateway: str


def create(
    request: BatchRequest,
    settings: ProducerSettings,
    batch_id: str | None = None,
    origin: BatchOrigin | None = None,
    traceparent: str | None = None,
) -> Call[OpenBatch | BatchmillError]:
    """Open a batch, or find the one that its idempotency key stands for.

    The call returns an `IdempotencyConflict` if that one has other content.

    Args:
        request: the fields of the batch.
        settings: for the time to live and the webhooks that are allowed.
        batch_id: a given id; None derives it from the key, or makes a new one.
        origin: of a batch that came by the gateway.
        traceparent: trace of the batch; None takes that of the application's current span.

    Raises:
        JobRejected: the operator does not allow the webhook.
    """
    check_webhook(request.webhook, settings)
    batch_id = batch_id or keys.new_batch_id(request.idempotency_key, request.tenant)
    events = set(request.webhook_events_filter)
    fields: dict[str, Argument | None] = {
        "id": batch_id,
        "fingerprint": Fingerprint(
            _fingerprint(request, origin), request.tenant or keys.DEFAULT_TENANT
        ),
        "metadata": json.dumps(request.metadata, ensure_ascii=False),
        "result_ttl_ms": settings.result_ttl_s * 1000,
        "ttl_ms": None if request.ttl_s is None else max(1, int(request.ttl_s * 1000)),
        "webhook": request.webhook,
        "webhook_events": None if events == set(BATCH_EVENTS) else ",".join(sorted(events)),
        "webhook_secret": request.webhook_secret,
        "tenant": request.tenant,
        "traceparent": traceparent or current_traceparent(settings),
    }
    if origin is not None:
        fields |= asdict(origin) | {"intake": "1"}
    full = QueueFull("the broker has reached its memory limit; try later or raise Redis' maxmemory")
    return batch_scripts.create(fields).then(_opened, when_out_of_memory=full)


def seal(batch_id: str, num_lines: int) -> Call[BatchmillError | None]:
    """Declare that all lines are submitted. The call returns the error to raise, or None."""

    def convert(reply: SealReply) -> BatchmillError | None:
        match reply.status:
            case "OK":
                return None
            case "UNKNOWN":
                return unknown_batch_error(batch_id)
            case "CLOSED":
                return batch_closed_error(batch_id, reply.detail)
        return IdempotencyConflict(
            f"batch {batch_id} has {reply.detail} lines, this input {num_lines}; use a new key for "
            "another input",
            job_id=batch_id,
        )

    return batch_scripts.seal(batch_id, num_lines).then(convert)


def cancel(batch_id: str, *errors: BatchError) -> Call[CancelStatus]:
    """Take no more lines and begin to cancel the jobs.

    With errors the batch fails, unless all its lines are submitted: then nothing is done.
    """
    found = [error.model_dump(mode="json", exclude_none=True) for error in errors]
    text = json.dumps(found[0] if len(found) == 1 else found) if found else ""
    return batch_scripts.cancel(batch_id, text)


def raise_if_error(value: Value | BatchmillError) -> Value:
    """Return a value, or raise it if it is an error: the calls of batches return errors as values.

    Raises:
        BatchmillError: the value.
    """
    if isinstance(value, BatchmillError):
        raise value
    return value


def _opened(reply: CreateReply) -> OpenBatch | BatchmillError:
    if reply.is_conflict:
        return IdempotencyConflict(
            f"the idempotency_key stands for batch {reply.batch_id}, which has other content; use "
            "a new key for a new batch",
            job_id=reply.batch_id,
        )
    return OpenBatch(reply.batch_id, reply.deadline_at_ms)


def _fingerprint(request: BatchRequest, origin: BatchOrigin | None) -> str:
    content = request.model_dump(mode="json", exclude={"idempotency_key", "tenant"})
    content["webhook_events_filter"] = sorted(content["webhook_events_filter"])
    if origin is not None:
        content |= asdict(origin)
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
