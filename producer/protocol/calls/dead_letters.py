"""The call that stores a dead letter."""

from __future__ import annotations

from .call import Call


def add(
    letter_id: str, kind: str, reason: str, payload: bytes, source: str, spare_id: str
) -> Call[str]:
    """Store a dead letter; the reply is the id that it is stored under."""
    args = (letter_id, kind, reason, payload, source, spare_id)
    return Call("dead_letter_add", args, lambda reply: str(reply.decode()))
