"""A batch as its producer describes it, and as the store tells of it, in OpenAI's words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from batchmill.producer.errors import JobRejected

from . import limits
from .document import IdempotencyKey, Metadata, SecretName, WebhookUrl
from .strictness import STRICT
from .validation import rejection

_CONFIG = ConfigDict(extra="ignore", frozen=True, hide_input_in_errors=True)

BatchEventName = Literal["completed", "failed", "expired", "cancelled"]
BATCH_EVENTS: tuple[BatchEventName, ...] = ("completed", "failed", "expired", "cancelled")


class BatchState(StrEnum):
    """OpenAI's states of a batch."""

    #: Its lines come in; jobs of those that are in run already.
    VALIDATING = "validating"
    #: All lines are in.
    IN_PROGRESS = "in_progress"
    #: Lasts no time here: results are there as their jobs end. `finalizing_at` is the last end.
    FINALIZING = "finalizing"
    #: Every job has ended, some perhaps without a completion.
    COMPLETED = "completed"
    #: A line was refused, or lines stopped coming; the jobs that were in are cancelled.
    FAILED = "failed"
    #: Its time was over before every job had ended.
    EXPIRED = "expired"
    #: Its jobs are being cancelled.
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"

    @property
    def is_terminal(self) -> bool:
        """Whether the batch has ended: nothing changes it any more."""
        return self.value in BATCH_EVENTS


class BatchRequest(BaseModel):
    """What a batch asks for, besides its lines. Unknown fields are errors."""

    model_config = STRICT

    #: Receives one signed POST when the batch ends. https, unless the operator allows http.
    webhook: WebhookUrl | None = None
    #: Ends to tell of; all four where absent.
    webhook_events_filter: Annotated[list[BatchEventName], Field(min_length=1, max_length=4)] = (
        Field(default_factory=lambda: list(BATCH_EVENTS))
    )
    #: Name of the operator's secret to sign with; the default one where absent.
    webhook_secret: SecretName | None = None
    #: Your own words about the batch, given back with its state and in its webhook.
    metadata: Metadata = Field(default_factory=dict)
    #: Seconds after which jobs that have not ended expire, and the batch with them.
    ttl_s: float | None = Field(default=None, gt=0, le=limits.MAX_TTL_S)
    #: Makes creating it again go on where it was, for as long as the batch is kept.
    idempotency_key: IdempotencyKey | None = None


class RequestCounts(BaseModel):
    """How many of a batch's lines have ended, as OpenAI counts them."""

    model_config = _CONFIG

    #: Lines so far; all of them once the state is not `validating` any more.
    total: int = 0
    completed: int = 0
    #: Ended without a completion: failed, cancelled, expired or refused.
    failed: int = 0


class BatchError(BaseModel):
    """Why a batch failed."""

    model_config = _CONFIG

    code: str
    #: For people. Never holds prompt or output text.
    message: str
    #: Place of the line at fault in the input, from 1.
    line: int | None = None
    param: str | None = None


class BatchErrors(BaseModel):
    """OpenAI's list of errors."""

    model_config = _CONFIG

    object: Literal["list"] = "list"
    data: list[BatchError] = Field(default_factory=list)


class BatchStatus(BaseModel):
    """Where a batch is. Times are seconds of unix time, on Redis' clock."""

    model_config = _CONFIG

    id: str
    object: Literal["batch"] = "batch"
    status: BatchState
    request_counts: RequestCounts = Field(default_factory=RequestCounts)
    errors: BatchErrors | None = None
    created_at: int
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    #: When jobs that have not ended expire.
    expires_at: int | None = None
    metadata: dict[str, str] = Field(default_factory=dict)


_MOMENTS = (
    *("created", "in_progress", "finalizing", "completed", "failed", "expired"),
    *("cancelling", "cancelled"),
)


def read_batch(fields: Mapping[bytes, bytes], num_jobs: int) -> BatchStatus | None:
    """Return the batch in the fields of its hash, or None where there is none.

    Args:
        fields: of the hash.
        num_jobs: lines that are in, for a batch that may get more.
    """
    if b"state" not in fields:
        return None
    moments = {f"{name}_at": _seconds(fields, f"{name}_at_ms") for name in _MOMENTS}
    error = fields.get(b"error")
    return BatchStatus.model_validate(
        {
            "id": fields[b"id"].decode(),
            "status": fields[b"state"].decode(),
            "request_counts": {
                "total": int(fields.get(b"total", num_jobs)),
                "completed": int(fields[b"completed"]),
                "failed": int(fields[b"failed"]),
            },
            "errors": None if error is None else {"data": [json.loads(error)]},
            "expires_at": _seconds(fields, "deadline_at_ms"),
            "metadata": json.loads(fields.get(b"metadata", b"{}")),
            **moments,
        }
    )


def parse_batch(fields: Mapping[str, Any]) -> BatchRequest:
    """Return the request that fields describe.

    Raises:
        JobRejected: a field is unknown or wrong; the message names it.
    """
    unknown = fields.keys() - BatchRequest.model_fields.keys()
    if unknown:
        name = min(unknown)
        known = ", ".join(BatchRequest.model_fields)
        raise JobRejected(f"{name} is not a parameter of a batch; it has {known}", param=name)
    try:
        return BatchRequest.model_validate(dict(fields))
    except ValidationError as error:
        raise rejection(error) from None


def _seconds(fields: Mapping[bytes, bytes], name: str) -> int | None:
    value = fields.get(name.encode())
    return None if value is None else int(value) // 1000
