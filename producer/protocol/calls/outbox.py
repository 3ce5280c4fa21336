"""Calls of the outbox: webhook events, their delivery, and delivering them again."""

from __future__ import annotations

from typing import Any

from batchmill.producer.protocol.outbox import (
    ClaimedEvents,
    DeliveryOutcome,
    OutboxEntry,
    RedeliverStatus,
    UnusableEvent,
)
from batchmill.producer.protocol.replies import WriteStatus

from .call import Call


def claim(owner: str, limit: int, lease_ms: int) -> Call[ClaimedEvents]:
    """Take webhook events that are due, under a lease."""
    return Call("outbox_claim", (owner, limit, lease_ms), _read_entries)


def set_body_once(event_id: str, body: bytes) -> Call[bytes]:
    """Store an event's body unless it has one; the reply is the stored body."""
    return Call("outbox_set_body", (event_id, body), bytes)


def settle(
    event_id: str | bytes,
    fence: int,
    outcome: DeliveryOutcome,
    *,
    retry_in_ms: int = 0,
    http_status: int | None = None,
    reason: str = "",
    duration_ms: int = 0,
    is_receiver_fault: bool = False,
) -> Call[WriteStatus]:
    """Record how a delivery attempt ended."""
    status = "" if http_status is None else http_status
    fault = "1" if is_receiver_fault else "0"
    args = (event_id, fence, outcome.value, retry_in_ms, status, reason, duration_ms, fault)
    return Call("outbox_settle", args, lambda reply: WriteStatus(reply.decode()))


def redeliver(event_id: str) -> Call[RedeliverStatus]:
    """Put a settled event back, with the same id and body, and drop its dead letter."""
    return Call("outbox_redeliver", (event_id,), lambda reply: RedeliverStatus(reply.decode()))


def settle_unusable(event: UnusableEvent) -> Call[WriteStatus]:
    """Make a dead letter of an event that cannot be read."""
    return settle(event.event_id, event.fence, DeliveryOutcome.UNUSABLE)


def _read_entries(reply: list[list[Any]]) -> ClaimedEvents:
    claimed = ClaimedEvents([], [])
    for row in reply:
        try:
            claimed.entries.append(_read_entry(row))
        except ValueError:  # not UTF-8, or not a number: the other events are still delivered
            claimed.unusable.append(UnusableEvent(event_id=row[0], fence=row[5]))
    return claimed


def _read_entry(row: list[Any]) -> OutboxEntry:
    event_id, kind, job_id, url, attempt, fence, created_at_ms, body, secret, num_tokens = row
    return OutboxEntry(
        event_id=event_id.decode(),
        type=kind.decode(),
        job_id=job_id.decode(),
        url=url.decode(),
        attempt=attempt,
        fence=fence,
        created_at_ms=created_at_ms,
        body=body or None,
        secret_name=secret.decode(),
        num_tokens=int(num_tokens) if num_tokens else None,
    )
