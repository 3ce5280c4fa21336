"""Values of the webhook scripts: an event that a deliverer claimed, and how deliveries end."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from . import keys
from .content import UnreadableContent

_URL = re.compile(r"([A-Za-z][\w+.-]*)://([^/?#]*)([^#]*)", re.ASCII | re.DOTALL)
_DEFAULT_PORTS = {"https": ":443", "http": ":80"}


def endpoint_of(url: str, tenant: str = keys.DEFAULT_TENANT) -> str:
    """Return the name of an endpoint: the tenant, a space and the URL, query included.

    URLs that differ only in the case of the host, a default port, a final dot or a missing path
    name the same endpoint. `lua/lib/endpoints.lua` has the same function.
    """
    match = _URL.match(url)
    if match is None:
        return f"{tenant} {url}"
    scheme, authority, rest = match[1].lower(), match[2].lower(), match[3]
    authority = authority.removesuffix(_DEFAULT_PORTS.get(scheme, ":80"))
    authority = re.sub(r"\.(:[0-9]+)?$", r"\1", authority.removesuffix(":"))
    path = rest if rest.startswith("/") else f"/{rest}"
    return f"{tenant} {scheme}://{authority}{path}"


def host_of_endpoint(endpoint: str) -> str:
    """Return scheme, host and port of an endpoint; deliveries to one host share its slots."""
    match = re.match(r"\S+ ([A-Za-z][\w+.-]*://[^/]*)", endpoint, re.ASCII)
    return "unknown" if match is None else match[1]


@dataclass(frozen=True, slots=True)
class ClaimLimits:
    """The most events that one `outbox_claim` may take, and the most deliveries in flight."""

    #: Events in all.
    total: int
    #: Of these, events for hosts that may be slow and have nothing in flight.
    first: int
    #: Of these, events for hosts that may be slow.
    more: int
    #: Of these, events that are replayed.
    replay: int
    #: Deliveries in flight to one host, of all deliverers together.
    per_host: int
    #: Deliveries in flight to one endpoint.
    per_endpoint: int


def claim_limits(total: int, *, per_host: int = 1_000, per_endpoint: int = 1_000) -> ClaimLimits:
    """Return limits without a share for any kind of host."""
    return ClaimLimits(total, total, total, total, per_host, per_endpoint)


@dataclass(frozen=True, slots=True)
class Breaker:
    """When an endpoint that only fails is left alone, and for how long."""

    #: Failures in a row after which nothing is sent for a while; 0 means never.
    failures: int = 0
    #: The first wait; it doubles with each further failure.
    wait_ms: int = 0
    max_wait_ms: int = 0


class Lane(StrEnum):
    """The kind of host that an event was claimed for."""

    #: Attempts take at most two seconds.
    FAST = "fast"
    #: Slow or not measured yet, with nothing in flight.
    FIRST = "first"
    #: Slow or not measured yet.
    MORE = "more"
    #: Any host, for an event that is replayed.
    REPLAY = "replay"


class DeliveryOutcome(StrEnum):
    """How an attempt to deliver a webhook event ended."""

    DELIVERED = "delivered"
    #: Failed; the event is tried again later.
    RETRY = "retry"
    #: The last attempt failed: dead letter.
    EXHAUSTED = "exhausted"
    #: The endpoint is disabled: the receiver wants no more events (410). Dead letter.
    DISABLED = "disabled"
    #: Sending to this URL is not allowed: dead letter.
    REFUSED = "refused"
    #: Not attempted: a field holds data that batchmill did not write. Dead letter.
    UNUSABLE = "unusable_event"


@dataclass(frozen=True, slots=True)
class OutboxEntry:
    """A webhook event that a deliverer claimed, under a lease."""

    event_id: str
    #: `generation.` and `started`, `output`, `completed`, `failed`, `cancelled` or
    #: `expired`; or `batch.` and one of the last four; or `response.` and OpenAI's word.
    type: str
    #: Of the job, or of the batch.
    job_id: str
    url: str
    #: 1 at the first attempt; an attempt whose deliverer died counts.
    attempt: int
    #: Of this claim: its number and its nonce.
    fence: str
    #: When the event happened.
    created_at_ms: int
    #: The bytes to send, once `outbox_set_body_once` has stored them.
    body: bytes | None
    #: Name of the operator's secret to sign with; empty for the default one. A registered receiver
    #: has secrets of its own: then `@` and its id.
    secret_name: str = ""
    #: With `generation.output`: tokens so far.
    num_tokens: int | None = None
    lane: Lane = Lane.FAST
    #: Trace of the job or batch, as it was stored: any client may have written it.
    traceparent: str | None = None
    #: Why the stored body cannot be opened; it is None then.
    unreadable: UnreadableContent | None = None

    @property
    def receiver_id(self) -> str | None:
        """The registered receiver that it is for; None if a job or a batch named the URL."""
        mark, receiver_id = self.secret_name[:1], self.secret_name[1:]
        return receiver_id if mark == "@" else None


@dataclass(frozen=True, slots=True)
class UnusableEvent:
    """An event that was claimed, with a field that batchmill did not write."""

    event_id: bytes
    fence: str


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


@dataclass(frozen=True, slots=True)
class ReplayedPage:
    """Reply of `events_replay`."""

    #: The next page has the events that were written after this time; None if this was the last.
    after_ms: int | None
    num_queued: int
    #: Not queued, because their endpoint is disabled.
    num_disabled: int
    #: Not queued, because they wait for delivery already.
    num_waiting: int
    #: Ids of events that are no longer kept.
    gone: tuple[str, ...]
