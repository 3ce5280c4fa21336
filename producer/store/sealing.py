"""The arguments of script calls as they are sent: content is sealed, or in the object store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from batchmill.producer.protocol.calls.call import Call
from batchmill.producer.protocol.content import Cipher

Args = list[str | bytes | int]


def resolved_args(calls: Sequence[Call[Any]], cipher: Cipher) -> list[Args]:
    """Return the arguments of each call."""
    return [call.resolved_args(cipher) for call in calls]
