"""Calls of the inbox: take documents under a lease, and settle them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from batchmill.producer.protocol import keys
from batchmill.producer.protocol.content import KeyIds

from .call import Call

#: The longest prompt with every character escaped, and as much again for the rest.
MAX_DOCUMENT_BYTES: Final = 12 << 20
#: Documents taken per call, and their bytes: Redis serves no other client meanwhile.
MAX_TAKEN_AT_ONCE: Final = 32
MAX_TAKEN_BYTES: Final = 4 << 20
#: Most documents that are taken and not settled; the others wait in the inbox.
MAX_TAKEN: Final = 1000
#: Of those, the most that wait for room in their queue; others go to the end of the inbox.
MAX_WAITING: Final = 100


@dataclass(frozen=True, slots=True)
class TakenDocument:
    """A document on its way from the inbox into a record."""

    #: The id that it is stored under; also the job's id unless the document gives one.
    id: str
    content: bytes
    #: End of its lease, milliseconds on Redis' clock.
    held_until_ms: int = field(default=0, compare=False)


def take(
    lease_ms: int, max_taken: int = MAX_TAKEN, *, session: str = "", connected_ms: int = 0
) -> Call[list[TakenDocument]]:
    """Take documents under a lease; one that is not settled in time is handed out again.

    Args:
        lease_ms: length of the lease.
        max_taken: documents that may be taken at a time, by all workers.
        session: of the calling worker. If it is lost, a document that it had counts a lost worker;
            the third makes it a dead letter.
        connected_ms: how long the session has been connected.

    If the connection repeats the call because the first reply was lost, its ids are in use: it
    hands out the documents under them, and stores nothing else there.
    """

    def parse(reply: Sequence[Any]) -> list[TakenDocument]:
        held_until_ms, *taken = reply
        pairs = zip(taken[::2], taken[1::2], strict=True)
        return [TakenDocument(each.decode(), content, held_until_ms) for each, content in pairs]

    fresh = (keys.new_job_id() for _ in range(MAX_TAKEN_AT_ONCE))
    limits = (MAX_TAKEN_AT_ONCE, max_taken, MAX_DOCUMENT_BYTES, MAX_TAKEN_BYTES)
    return Call("inbox_take", (lease_ms, *limits, session, connected_ms, KeyIds(), *fresh), parse)


def settle(
    taken_id: str,
    retry_in_ms: int | None = None,
    *,
    max_waiting: int = MAX_WAITING,
    held_until_ms: int | None = None,
) -> Call[str]:
    """Drop a taken document, or hand it out again after a while.

    If more than `max_waiting` wait for that already, it goes to the end of the inbox under a new
    id, because nothing was stored under this one. Nothing is delayed if another worker has the
    lease of `held_until_ms`: that worker may be submitting the job.
    """
    wait = "" if retry_in_ms is None else retry_in_ms
    args = (taken_id, wait, max_waiting, "" if held_until_ms is None else held_until_ms)
    return Call("inbox_settle", args, lambda reply: str(reply.decode()))
