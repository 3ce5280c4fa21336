"""Calls on batches: create, seal, cancel."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from batchmill.producer.protocol.replies import CancelStatus

from .call import Argument, Call, named


@dataclass(frozen=True, slots=True)
class CreateReply:
    """Reply of `create`."""

    batch_id: str
    #: The idempotency key stands for a batch with other content.
    is_conflict: bool
    #: Jobs that have not ended by then expire; None is never. Milliseconds of unix time.
    deadline_at_ms: int | None


@dataclass(frozen=True, slots=True)
class SealReply:
    """Reply of `seal`: `OK`, `UNKNOWN`, `CLOSED` or `CONFLICT`."""

    status: str
    #: With `CLOSED` the batch's state; with `CONFLICT` the number of its lines.
    detail: str = ""


def create(fields: Mapping[str, Argument | None]) -> Call[CreateReply]:
    """Open a batch, or find the one that its idempotency key stands for."""

    def parse(reply: list[bytes]) -> CreateReply:
        if reply[0] == b"CONFLICT":
            return CreateReply(reply[1].decode(), True, None)
        return CreateReply(reply[1].decode(), False, int(reply[2]) if reply[2] else None)

    return Call("batch_create", named(fields), parse)


def take_intake(lease_ms: int, batch_id: str = "") -> Call[str | None]:
    """Take a batch whose lines a gateway is to read from their file, or keep a given one."""
    return Call(
        "batch_intake_take",
        (lease_ms, batch_id),
        lambda reply: None if reply is None else reply.decode(),
    )


def seal(batch_id: str, num_lines: int) -> Call[SealReply]:
    """Declare that all lines are submitted."""

    def parse(reply: list[Any]) -> SealReply:
        return SealReply(*(part.decode() for part in reply[:2]))

    return Call("batch_seal", (batch_id, num_lines), parse)


def cancel(batch_id: str, error_json: str) -> Call[CancelStatus]:
    """Take no more lines and begin to cancel the jobs; with an error the batch fails."""
    return Call(
        "batch_cancel", (batch_id, error_json), lambda reply: CancelStatus(reply[0].decode())
    )
