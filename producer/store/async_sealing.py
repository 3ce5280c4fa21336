"""The arguments of script calls, made on a thread if they are large."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

from batchmill.producer.protocol.calls.call import Call
from batchmill.producer.protocol.content import Cipher, Content
from batchmill.producer.protocol.media import MediaContent

from . import sealing
from .sealing import Args

#: Reading, hashing and sealing take about a millisecond per megabyte; a thread, a tenth of that.
_LARGE_BYTES: Final = 256 << 10


async def resolved_args(calls: Sequence[Call[Any]], cipher: Cipher) -> list[Args]:
    """Return the arguments of each call."""
    if sum(map(_num_bytes, calls)) > _LARGE_BYTES:
        return await asyncio.to_thread(sealing.resolved_args, calls, cipher)
    return sealing.resolved_args(calls, cipher)


def _num_bytes(call: Call[Any]) -> int:
    contents = (arg for arg in call.args if isinstance(arg, Content | MediaContent))
    return sum(len(each.value if isinstance(each, Content) else each.content) for each in contents)
