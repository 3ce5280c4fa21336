"""Calls that pause and resume queues, tenants and endpoints, and the read of all pauses."""

from __future__ import annotations

from batchmill.producer.protocol import keys
from batchmill.producer.protocol.pauses import Pause, PauseKind, read_pauses

from .call import Call, Read, stored


def pause(kind: PauseKind, name: str, *, by: str, reason: str, refuses: bool) -> Call[bool]:
    """Pause; the reply is whether it was not paused before."""
    return Call("pause", (kind.value, name, by, reason, "1" if refuses else "0"), bool)


def resume(kind: PauseKind, name: str) -> Call[bool]:
    """End a pause; the reply is whether there was one."""
    return Call("resume", (kind.value, name), bool)


def all_pauses() -> Read[list[Pause]]:
    """Read all pauses, oldest first."""
    return Read(
        lambda pipeline: pipeline.hgetall(keys.PAUSED),
        lambda replies: read_pauses(stored(replies[0], {})),
        keeps_errors=True,
    )
