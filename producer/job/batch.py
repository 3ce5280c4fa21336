"""A batch in OpenAI's terms: its request, its states and its status."""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from batchmill.producer.errors import JobRejected

from . import limits
from .document import IdempotencyKey, Metadata, SecretName, WebhookUrl
from .field_checks import STRICT
from .validation import rejected_error

_CONFIG = ConfigDict(extra="ignore", frozen=True, hide_input_in_errors=True)

BatchEventName = Literal["completed", "failed", "expired", "cancelled"]
BATCH_EVENTS: tuple[BatchEventName, ...] = ("completed", "failed", "expired", "cancelled")


class BatchState(StrEnum):
    """OpenAI's states of a batch."""

    #: Its lines are being added; jobs of the lines so far already run.
    VALIDATING = "validating"
    #: All lines are in.
    IN_PROGRESS = "in_progress"
    #: Takes no time here: results exist as their jobs end. `finalizing_at` is the last end.
    FINALIZING = "finalizing"
    #: Every job has ended, perhaps some without a completion.
    COMPLETED = "completed"
    #: A line was refused, or no more lines came; the jobs so far are cancelled.
    FAILED = "failed"
    #: Its time to live ended before every job had ended.
    EXPIRED = "expired"
    #: Its jobs are being cancelled.
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"

    @property
    def is_terminal(self) -> bool:
        """Whether the batch has ended: it changes no more."""
        return self.value in BATCH_EVENTS


class BatchRequest(BaseModel):
    """The options of a batch, without its lines. Unknown fields are errors."""

    model_config = STRICT

    #: Receives one signed POST when the batch ends. https, unless the operator allows http.
    webhook: WebhookUrl | None = None
    #: Events to send. If it is missing, all four.
    webhook_events_filter: Annotated[list[BatchEventName], Field(min_length=1, max_length=4)] = (
        Field(default_factory=lambda: list(BATCH_EVENTS))
    )
    #: Name of the operator's secret to sign with. If it is missing, the default secret.
    webhook_secret: SecretName | None = None
    #: Your own data about the batch, returned with its state and in its webhook.
    metadata: Metadata = Field(default_factory=dict)
    #: Seconds after which unfinished jobs expire, and the batch with them.
    ttl_s: float | None = Field(default=None, gt=0, le=limits.MAX_TTL_S)
    #: Creating a batch again with the same key continues it, while the batch is kept.
    idempotency_key: IdempotencyKey | None = None

    @model_validator(mode="before")
    @classmethod
    def _read_null_as_missing(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {name: value for name, value in data.items() if value is not None}


class RequestCounts(BaseModel):
    """How many of a batch's lines have ended, as OpenAI counts them."""

    model_config = _CONFIG

    #: Lines so far; all of them once the state is no longer `validating`.
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
    """The status of a batch. Times are seconds of unix time, on Redis' clock."""

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
    #: Time at which unfinished jobs expire.
    expires_at: int | None = None
    metadata: dict[str, str] = Field(default_factory=dict)


_MOMENTS = (
    *("created", "in_progress", "finalizing", "completed", "failed", "expired"),
    *("cancelling", "cancelled"),
)


def read_batch(fields: Mapping[bytes, bytes], num_jobs: int) -> BatchStatus | None:
    """Return the batch in the fields of its hash, or None if there is none.

    Args:
        fields: Fields of the hash.
        num_jobs: Lines so far, for a batch that may get more.
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
    """Return the options of a batch that fields describe.

    Raises:
        JobRejected: a field is unknown or wrong; the message names it.
    """
    unknown = fields.keys() - BatchRequest.model_fields.keys()
    if unknown:
        name = min(unknown)
        known = ", ".join(BatchRequest.model_fields)
        raise JobRejected(f"{name} is not a parameter of a batch: use {known}", param=name)
    try:
        return BatchRequest.model_validate(dict(fields))
    except ValidationError as error:
        raise rejected_error(error) from None


def _seconds(fields: Mapping[bytes, bytes], name: str) -> int | None:
    value = fields.get(name.encode())
    return None if value is None else int(value) // 1000
