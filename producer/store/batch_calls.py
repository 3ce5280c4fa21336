"""Script calls of batches, and from a checked request to what the store keeps."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any, TypeVar

from batchmill.producer.errors import BatchmillError, IdempotencyConflict, QueueFull
from batchmill.producer.job.batch import BATCH_EVENTS, BatchError, BatchRequest
from batchmill.producer.protocol import keys
from batchmill.producer.protocol.calls import Argument, Call, named
from batchmill.producer.protocol.replies import CancelStatus
from batchmill.producer.settings import ProducerSettings

from .reply_errors import batch_closed_error, unknown_batch_error
from .submission import check_webhook

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class OpenBatch:
    """A batch that takes lines."""

    batch_id: str
    #: Jobs that have not ended by then expire; None is never. Milliseconds of unix time.
    deadline_at_ms: int | None


def create(
    request: BatchRequest, settings: ProducerSettings, batch_id: str | None = None
) -> Call[OpenBatch | BatchmillError]:
    """Open a batch, or find the one that its idempotency key stands for.

    Answers an `IdempotencyConflict` where that one asks for something else.

    Args:
        request: what it asks for.
        settings: for the time to live and what webhooks are allowed.
        batch_id: a given id; None makes it from the key, or a new one.

    Raises:
        JobRejected: the webhook is one that the operator does not allow.
    """
    check_webhook(request.webhook, settings)
    batch_id = batch_id or keys.new_batch_id(request.idempotency_key)
    events = set(request.webhook_events_filter)
    fields: dict[str, Argument | None] = {
        "id": batch_id,
        "fingerprint": _fingerprint(request),
        "metadata": json.dumps(request.metadata, ensure_ascii=False),
        "result_ttl_ms": settings.result_ttl_s * 1000,
        "ttl_ms": None if request.ttl_s is None else max(1, int(request.ttl_s * 1000)),
        "webhook": request.webhook,
        "webhook_events": None if events == set(BATCH_EVENTS) else ",".join(sorted(events)),
        "webhook_secret": request.webhook_secret,
    }
    full = QueueFull("the broker has reached its memory limit; try later or raise Redis' maxmemory")
    return Call("batch_create", named(fields), _read_created, full)


def seal(batch_id: str, num_lines: int) -> Call[BatchmillError | None]:
    """Say that all lines are in. Answers the error to raise, or None."""

    def read(reply: list[Any]) -> BatchmillError | None:
        match reply[0]:
            case b"OK":
                return None
            case b"UNKNOWN":
                return unknown_batch_error(batch_id)
            case b"CLOSED":
                return batch_closed_error(batch_id, reply[1].decode())
        return IdempotencyConflict(
            f"batch {batch_id} has {reply[1].decode()} lines, this input {num_lines}; use a new "
            "key for another input",
            job_id=batch_id,
        )

    return Call("batch_seal", (batch_id, num_lines), read)


def cancel(batch_id: str, error: BatchError | None = None) -> Call[CancelStatus]:
    """Let no line follow and begin to cancel the jobs.

    With an error the batch ends as failed; where all its lines are in, nothing is done then.
    """
    text = "" if error is None else error.model_dump_json(exclude_none=True)
    return Call("batch_cancel", (batch_id, text), lambda reply: CancelStatus(reply[0].decode()))


def raise_if_error(answer: Answer | BatchmillError) -> Answer:
    """Return an answer, unless it is an error: the calls of batches return errors as values.

    Raises:
        BatchmillError: the answer.
    """
    if isinstance(answer, BatchmillError):
        raise answer
    return answer


def _read_created(reply: list[bytes]) -> OpenBatch | BatchmillError:
    status, batch_id = reply[0], reply[1].decode()
    if status == b"CONFLICT":
        return IdempotencyConflict(
            f"the idempotency_key stands for batch {batch_id}, which asks for something else; use "
            "a new key for a new batch",
            job_id=batch_id,
        )
    return OpenBatch(batch_id, int(reply[2]) if reply[2] else None)


def _fingerprint(request: BatchRequest) -> str:
    content = request.model_dump(mode="json", exclude={"idempotency_key"})
    content["webhook_events_filter"] = sorted(content["webhook_events_filter"])
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
