"""What the gateway returns besides generated outputs, as pydantic models for the OpenAPI document.

Routes build their objects as plain dictionaries; tests hold real responses to these models, which
allow no further fields.
"""

from __future__ import annotations

from typing import Annotated, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from batchmill.producer.job.batch import BatchErrors, BatchState, RequestCounts
from batchmill.producer.store.receivers import Receiver

Item = TypeVar("Item")
Seconds = Annotated[int, Field(description="Seconds of unix time.")]


class Object(BaseModel):
    """An object of the APIs."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class OpenAIError(Object):
    """What is wrong, in OpenAI's terms."""

    message: str
    type: str
    param: str | None
    """The field at fault."""
    code: str


class OpenAIErrors(Object):
    """An error of OpenAI's API."""

    error: OpenAIError


class AnthropicError(Object):
    """What is wrong, in Anthropic's terms."""

    type: str
    message: str


class AnthropicErrors(Object):
    """An error of Anthropic's API."""

    type: Literal["error"]
    error: AnthropicError
    request_id: str


class Health(Object):
    """The process lives."""

    status: Literal["ok"]


class Readiness(Health):
    """The broker replies."""

    models: list[str]
    missing_shards: list[str] | None = None
    """Shards that do not reply; left out without any."""


class Listing(Object):
    """A list of what several brokers have."""

    missing_shards: list[str] | None = None
    """Shards that do not reply, so that what they have is missing; left out without any."""


class Page(Listing, Generic[Item]):
    """A page of a list of OpenAI's API."""

    object: Literal["list"]
    data: list[Item]
    first_id: str | None
    last_id: str | None
    has_more: bool


class EventTypes(Object):
    """The types of webhook events."""

    object: Literal["list"]
    data: list[str]


class Model(Object):
    """A model that live workers serve, in OpenAI's terms."""

    id: str
    object: Literal["model"]
    created: Seconds
    owned_by: str
    kinds: list[str]
    """Kinds of job that its workers serve: `generate`, `embed`, `score` …"""
    media: list[str]
    """What messages may hold besides text: `image`, `audio`."""


class Models(Listing):
    """All models."""

    object: Literal["list"]
    data: list[Model]


class AnthropicModel(Object):
    """A model that live workers serve, in Anthropic's terms."""

    id: str
    type: Literal["model"]
    display_name: str
    created_at: str


class AnthropicPage(Listing, Generic[Item]):
    """A page of a list of Anthropic's API."""

    data: list[Item]
    first_id: str | None
    last_id: str | None
    has_more: bool


class File(Object):
    """A file."""

    id: str
    object: Literal["file"]
    bytes: int
    created_at: Seconds
    expires_at: Seconds | None
    filename: str
    purpose: Literal["batch", "batch_output"]
    status: Literal["processed"]


class Deleted(Object):
    """An object that was deleted."""

    id: str
    object: str
    deleted: Literal[True]


class ReasoningDetails(Object):
    """Tokens of thoughts."""

    reasoning_tokens: int


class CachedDetails(Object):
    """Tokens whose KV was cached."""

    cached_tokens: int


class ResponseUsage(Object):
    """Tokens of a response, or of a batch."""

    input_tokens: int
    input_tokens_details: CachedDetails
    output_tokens: int
    output_tokens_details: ReasoningDetails
    total_tokens: int


class Batch(Object):
    """A batch, in OpenAI's terms."""

    id: str
    object: Literal["batch"]
    status: BatchState
    endpoint: str
    input_file_id: str
    output_file_id: str | None
    error_file_id: str | None
    completion_window: str
    model: str | None
    """The one model of its lines; null if they name several, or were not read yet."""
    request_counts: RequestCounts
    errors: BatchErrors | None
    created_at: Seconds
    in_progress_at: Seconds | None
    finalizing_at: Seconds | None
    completed_at: Seconds | None
    failed_at: Seconds | None
    expired_at: Seconds | None
    cancelling_at: Seconds | None
    cancelled_at: Seconds | None
    expires_at: Seconds | None
    metadata: dict[str, str]
    usage: ResponseUsage


class MessageCounts(Object):
    """How many requests of a batch are in each state; they add up to all."""

    processing: int
    succeeded: int
    errored: int
    canceled: int
    expired: int


class MessageBatch(Object):
    """A batch of messages."""

    id: str
    type: Literal["message_batch"]
    processing_status: Literal["in_progress", "canceling", "ended"]
    request_counts: MessageCounts
    created_at: str
    expires_at: str
    ended_at: str | None
    cancel_initiated_at: str | None
    archived_at: None
    results_url: str | None


class DeletedMessageBatch(Object):
    """A batch of messages that was deleted."""

    id: str
    type: Literal["message_batch_deleted"]


class ReceiverWithSecret(Receiver):
    """A webhook endpoint with its secret."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    signing_secret: str


class EndpointTest(Object):
    """How a receiver responded to a sample."""

    object: Literal["webhook_endpoint.test"]
    webhook_endpoint_id: str
    event_type: str
    status_code: int
    success: Literal[True]


class UsageRow(Object):
    """What jobs with the same labels have used."""

    day: str | None = None
    tenant: str | None = None
    key: str | None = None
    model: str | None = None
    jobs: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    reasoning_tokens: int


class UsageSums(Object):
    """What the jobs of a tenant have used in a period."""

    object: Literal["list"]
    tenant: str
    start_date: str
    end_date: str
    data: list[UsageRow]
