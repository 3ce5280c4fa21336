"""Calls on objects outside Redis: note them before they are written, find those to delete."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from batchmill.producer.protocol import keys

from .call import Call, Read


def note(names: Sequence[str]) -> Call[None]:
    """Note objects that are about to be written."""
    return Call("payloads_note", names, lambda reply: None)


def take_unused(limit: int, *, repeat_ms: int) -> Call[tuple[int, list[str]]]:
    """Find objects that nothing refers to; the reply has how many were looked up, and the names.

    Args:
        limit: objects to look up, and to give out.
        repeat_ms: after this time, those that are not settled are given out again.
    """

    def read(reply: list[Any]) -> tuple[int, list[str]]:
        num_seen, *names = reply
        return num_seen, [name.decode(errors="backslashreplace") for name in names]

    return Call("payloads_take", (limit, repeat_ms), read)


def settle(names: Sequence[str]) -> Call[None]:
    """Forget objects that have been deleted."""
    return Call("payloads_settle", names, lambda reply: None)


def num_objects() -> Read[tuple[int, int]]:
    """Read how many objects there are, and how many more are due for deletion."""

    def queue(pipeline: Any) -> None:
        pipeline.zcard(keys.PAYLOADS)
        pipeline.zcard(keys.PAYLOADS_UNUSED)

    return Read(queue, lambda replies: (replies[0], replies[1]))
