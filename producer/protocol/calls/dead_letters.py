"""The call that stores a dead letter."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from batchmill.producer.protocol.content import Content, Fingerprint, Place

from .call import Argument, Call


def add(
    letter_id: str,
    kind: str,
    reason: str,
    payload: bytes,
    source: str,
    *,
    keeps_other: bool,
    tenant: str = "",
    tags: Sequence[str] = (),
) -> Call[bool]:
    """Store a dead letter that is not of a job.

    With `keeps_other`, a letter of the same id with other content stays, and the reply is False.
    """
    digest = hashlib.sha256(payload).hexdigest()
    args: tuple[Argument, ...] = (
        *(letter_id, kind, reason, Content(payload, Place(letter_id, "payload")), source),
        *(Fingerprint(digest, tenant), "1" if keeps_other else "", tenant, ",".join(tags)),
    )
    return Call("dead_letter_add", args, lambda reply: bool(reply == 1))
