"""Calls of the outbox: webhook events, their delivery, and delivering them again."""

from __future__ import annotations

from typing import Any

from batchmill.producer.protocol import keys
from batchmill.producer.protocol.content import Cipher, Content, Place, Unopened, opened
from batchmill.producer.protocol.outbox import (
    Breaker,
    ClaimedEvents,
    ClaimLimits,
    DeliveryOutcome,
    Lane,
    OutboxEntry,
    RedeliverStatus,
    ReplayedPage,
    UnusableEvent,
)
from batchmill.producer.protocol.replies import WriteStatus

from .call import Argument, Call

_NO_BREAKER = Breaker()
#: Place of the body among the values of a claimed event.
_BODY = 7


def claim(owner: str, lease_ms: int, limits: ClaimLimits, session: str = "") -> Call[ClaimedEvents]:
    """Take webhook events that are due, under a lease, host by host in turn.

    They are due again when the lease ends, or when the session is lost.
    """
    rooms = (limits.total, limits.first, limits.more, limits.replay)
    most = (limits.per_host, limits.per_endpoint)
    args = (owner, keys.new_claim_nonce(), lease_ms, *rooms, *most, session)
    return Call("outbox_claim", args, _read_entries, opens=_open_bodies)


def repair(start: int, limit: int) -> Call[tuple[int, int]]:
    """Queue events again that their endpoint's queue has lost, in one page of all waiting events.

    The reply is the start of the next page (0 after the last one), and how many were lost.
    """
    return Call("outbox_repair", (start, limit), lambda reply: (reply[0], reply[1]))


def set_body_once(event_id: str, body: bytes) -> Call[bytes]:
    """Store an event's body unless it has one; the reply is the stored body."""
    place = Place(event_id, "body")
    return Call(
        "outbox_set_body",
        (event_id, Content(body, place)),
        bytes,
        opens=lambda reply, cipher: cipher.open(reply, place),
    )


def settle(
    event_id: str | bytes,
    fence: str,
    outcome: DeliveryOutcome,
    *,
    retry_in_ms: int = 0,
    http_status: int | None = None,
    reason: str = "",
    duration_ms: int | None = None,
    is_receiver_fault: bool = False,
    hold_ms: int = 0,
    breaker: Breaker = _NO_BREAKER,
) -> Call[WriteStatus]:
    """Record how a delivery attempt ended."""
    status = "" if http_status is None else http_status
    duration = "" if duration_ms is None else duration_ms
    fault = "1" if is_receiver_fault else "0"
    args: tuple[Argument, ...] = (
        event_id,
        fence,
        outcome.value,
        retry_in_ms,
        status,
        reason,
        duration,
        fault,
        hold_ms,
    )
    args += (breaker.failures, breaker.wait_ms, breaker.max_wait_ms)
    return Call("outbox_settle", args, lambda reply: WriteStatus(reply.decode()))


def set_endpoint(endpoint: str, *, is_enabled: bool) -> Call[bool]:
    """Enable or disable an endpoint; the reply is whether that changed anything."""
    return Call("outbox_set_endpoint", (endpoint, "1" if is_enabled else "0"), bool)


def replay(
    after_ms: int,
    until_ms: int,
    *,
    endpoint: str,
    job_id: str,
    receiver_id: str,
    failed_only: bool,
    limit: int,
    max_waiting: int,
) -> Call[ReplayedPage | None]:
    """Queue settled events again, one page of them; the reply is None if too many events wait."""

    def read(reply: list[Any]) -> ReplayedPage | None:
        if reply[0] == b"FULL":
            return None
        _, next_ms, num_queued, num_disabled, num_waiting, gone = reply
        names = tuple(name.decode(errors="backslashreplace") for name in gone)
        after = int(float(next_ms)) if next_ms else None
        return ReplayedPage(after, num_queued, num_disabled, num_waiting, names)

    only = "1" if failed_only else "0"
    args = (after_ms, until_ms, limit, endpoint, job_id, only, max_waiting, receiver_id)
    return Call("events_replay", args, read)


def redeliver(event_id: str) -> Call[RedeliverStatus]:
    """Put a settled event back, with the same id and body, and drop its dead letter."""
    return Call("outbox_redeliver", (event_id,), lambda reply: RedeliverStatus(reply.decode()))


def settle_unusable(event: UnusableEvent) -> Call[WriteStatus]:
    """Make a dead letter of an event that cannot be read."""
    return settle(event.event_id, event.fence, DeliveryOutcome.UNUSABLE)


def _open_bodies(reply: list[list[Any]], cipher: Cipher) -> list[list[Any]]:
    """Return claimed events with their bodies opened."""

    def open_body(row: list[Any]) -> list[Any]:
        place = Place(row[0].decode(errors="replace"), "body")
        return [*row[:_BODY], opened(cipher, row[_BODY], place), *row[_BODY + 1 :]]

    return list(map(open_body, reply))


def _read_entries(reply: list[list[Any]]) -> ClaimedEvents:
    claimed = ClaimedEvents([], [])
    for row in reply:
        try:
            claimed.entries.append(_read_entry(row))
        except ValueError:  # not UTF-8, or not a number: the other events are still delivered
            claimed.unusable.append(UnusableEvent(event_id=row[0], fence=row[5].decode()))
    return claimed


def _read_entry(row: list[Any]) -> OutboxEntry:
    event_id, kind, job_id, url, attempt, fence, created_at_ms, *rest = row
    body, secret, num_tokens, lane, traceparent = rest
    unreadable = body.error if isinstance(body, Unopened) else None
    return OutboxEntry(
        event_id=event_id.decode(),
        type=kind.decode(),
        job_id=job_id.decode(),
        url=url.decode(),
        attempt=attempt,
        fence=fence.decode(),
        created_at_ms=created_at_ms,
        body=None if unreadable else body or None,
        secret_name=secret.decode(),
        num_tokens=int(num_tokens) if num_tokens else None,
        lane=Lane(lane.decode()),
        traceparent=traceparent.decode("latin-1") or None,
        unreadable=unreadable,
    )
