"""A batch in OpenAI's terms: its request, its states and its status."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from batchmill.producer.errors import JobRejected
from batchmill.producer.moments import moment
from batchmill.producer.protocol.used_tokens import Amounts, read_amounts

from . import limits
from .field_checks import STRICT, check_num_parts
from .field_types import IdempotencyKey, Metadata, SecretName, TenantName, WebhookUrl
from .validation import rejected_error

_CONFIG = ConfigDict(
    extra="ignore", frozen=True, hide_input_in_errors=True, use_attribute_docstrings=True
)

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

    webhook: WebhookUrl | None = None
    """Receives one signed POST when the batch ends. https, unless the operator allows http."""

    webhook_events_filter: Annotated[list[BatchEventName], Field(min_length=1, max_length=4)] = (
        Field(default_factory=lambda: list(BATCH_EVENTS))
    )
    """Events to send. If it is missing, all four."""

    webhook_secret: SecretName | None = None
    """Name of the operator's secret to sign with. If it is missing, the default secret."""

    metadata: Metadata = Field(default_factory=dict)
    """Your own data about the batch, returned with its state and in its webhook."""

    ttl_s: float | None = Field(default=None, gt=0, le=limits.MAX_TTL_S)
    """Seconds after which unfinished jobs expire, and the batch with them."""

    idempotency_key: IdempotencyKey | None = None
    """Creating a batch again with the same key continues it, while the batch is kept. Each tenant
    has its own keys."""

    tenant: TenantName | None = None
    """Owner of the batch, and of its jobs that name none. If it is missing, the batch has the
    tenant of its first job."""

    @model_validator(mode="before")
    @classmethod
    def _read_null_as_missing(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        check_num_parts(data, limits.MAX_PARTS)
        return {name: value for name, value in data.items() if value is not None}


class RequestCounts(BaseModel):
    """How many of a batch's lines have ended, as OpenAI counts them."""

    model_config = _CONFIG

    total: int = 0
    """Number of lines stored so far; it is final once the state is no longer `validating`."""

    completed: int = 0
    """Completed jobs."""

    failed: int = 0
    """Ended without a completion: failed, cancelled, expired or refused."""


class CachedTokensDetails(BaseModel):
    """The origin of the prompts' KV."""

    model_config = _CONFIG

    cached_tokens: int = 0
    """Prompt tokens found in the prefix cache."""


class ReasoningTokensDetails(BaseModel):
    """The parts of the outputs."""

    model_config = _CONFIG

    reasoning_tokens: int = 0
    """Tokens of thoughts, with those of their markup."""


class BatchUsage(BaseModel):
    """Tokens of a batch's ended jobs, as OpenAI names them."""

    model_config = _CONFIG

    input_tokens: int = 0
    """Tokens of the prompts."""

    input_tokens_details: CachedTokensDetails = Field(default_factory=CachedTokensDetails)
    """How many of them were cached."""

    output_tokens: int = 0
    """Generated tokens, of all samples."""

    output_tokens_details: ReasoningTokensDetails = Field(default_factory=ReasoningTokensDetails)
    """How many of them are thoughts."""

    total_tokens: int = 0
    """Both together."""


class BatchError(BaseModel):
    """Why a batch failed."""

    model_config = _CONFIG

    code: str
    """Code of the error."""

    message: str
    """For people. Never holds prompt or output text."""

    line: int | None = None
    """Place of the line at fault in the input, from 1."""

    param: str | None = None
    """The field at fault; None if it is none."""


class BatchErrors(BaseModel):
    """OpenAI's list of errors."""

    model_config = _CONFIG

    object: Literal["list"] = "list"
    """OpenAI's name of the type."""

    data: list[BatchError] = Field(default_factory=list)
    """The errors."""


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
    expires_at: int | None = None
    """Time at which unfinished jobs expire."""

    metadata: dict[str, str] = Field(default_factory=dict)
    usage: BatchUsage = Field(default_factory=BatchUsage)
    """Tokens of the jobs that have ended so far."""

    @property
    def moments(self) -> dict[str, datetime]:
        """The times that are set, as datetimes in UTC, by the names of their fields."""
        names = (*(f"{name}_at" for name in _MOMENTS), "expires_at")
        found = {name: getattr(self, name) for name in names}
        return {name: moment(unix_s * 1000) for name, unix_s in found.items() if unix_s is not None}


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
    found = json.loads(fields.get(b"error", b"[]"))
    errors = found if isinstance(found, list) else [found]
    if num_lost := int(fields.get(b"num_lost", 0)):
        message = f"the records of {num_lost} jobs were deleted or evicted before these had ended"
        errors.append({"code": "records_lost", "message": message})
    return BatchStatus.model_validate(
        {
            "id": fields[b"id"].decode(),
            "status": fields[b"state"].decode(),
            "request_counts": {
                "total": int(fields.get(b"total", num_jobs)),
                "completed": int(fields[b"completed"]),
                "failed": int(fields[b"failed"]),
            },
            "errors": {"data": errors} if errors else None,
            "expires_at": _seconds(fields, "deadline_at_ms"),
            "metadata": json.loads(fields.get(b"metadata", b"{}")),
            "usage": _usage(read_amounts(fields.get(b"used_tokens"))),
            **moments,
        }
    )


def _usage(amounts: Amounts) -> dict[str, Any]:
    return {
        "input_tokens": amounts.prompt_tokens,
        "input_tokens_details": {"cached_tokens": amounts.cached_tokens},
        "output_tokens": amounts.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": amounts.reasoning_tokens},
        "total_tokens": amounts.prompt_tokens + amounts.completion_tokens,
    }


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
