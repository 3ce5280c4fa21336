"""Values of the webhook scripts: an event that a deliverer claimed, and how deliveries end."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class DeliveryOutcome(StrEnum):
    """How an attempt to deliver a webhook event ended."""

    DELIVERED = "delivered"
    #: Failed; the event is tried again later.
    RETRY = "retry"
    #: Not attempted (its host is busy, or the deliverer stops): due again later, and not counted
    #: as an attempt.
    POSTPONED = "postponed"
    #: The last attempt failed: dead letter.
    EXHAUSTED = "exhausted"
    #: The receiver wants no more events (410), or its address is forbidden: dead letter.
    DISABLED = "disabled"
    #: Not attempted: a field holds data that batchmill did not write. Dead letter.
    UNUSABLE = "unusable_event"


@dataclass(frozen=True, slots=True)
class OutboxEntry:
    """A webhook event that a deliverer claimed, under a lease."""

    event_id: str
    #: `generation.` and `started`, `output`, `completed`, `failed`, `cancelled` or
    #: `expired`; or `batch.` and one of the last four.
    type: str
    #: Of the job, or of the batch.
    job_id: str
    url: str
    #: 1 at the first attempt; an attempt whose deliverer died counts.
    attempt: int
    fence: int
    #: When the event happened.
    created_at_ms: int
    #: The bytes to send, once `outbox_set_body_once` has stored them.
    body: bytes | None
    #: Name of the operator's secret to sign with; empty for the default one.
    secret_name: str = ""
    #: With `generation.output`: tokens so far.
    num_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class UnusableEvent:
    """An event that was claimed, with a field that batchmill did not write."""

    event_id: bytes
    fence: int


@dataclass(frozen=True, slots=True)
class ClaimedEvents:
    """Reply of `outbox_claim`."""

    entries: list[OutboxEntry]
    #: To settle as unusable.
    unusable: list[UnusableEvent]


class RedeliverStatus(StrEnum):
    """Reply of `outbox_redeliver`."""

    OK = "OK"
    #: The event waits for delivery already.
    PENDING = "PENDING"
    #: Its endpoint is disabled: enable the endpoint first.
    DISABLED = "DISABLED"
    UNKNOWN = "UNKNOWN"
