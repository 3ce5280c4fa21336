"""The call that stores a dead letter."""

from __future__ import annotations

from collections.abc import Sequence

from .call import Call


def add(
    letter_id: str,
    kind: str,
    reason: str,
    payload: bytes,
    source: str,
    spare_id: str,
    *,
    tenant: str = "",
    tags: Sequence[str] = (),
) -> Call[str]:
    """Store a dead letter; the reply is the id that it is stored under."""
    args = (letter_id, kind, reason, payload, source, spare_id, tenant, ",".join(tags))
    return Call("dead_letter_add", args, lambda reply: str(reply.decode()))
