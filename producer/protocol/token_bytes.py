"""Token ids as the bytes that Redis keeps."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence


def encode_tokens(token_ids: Sequence[int]) -> bytes:
    """Return token ids as uint32 little-endian bytes.

    Raises:
        OverflowError: an id is negative or above 2**32 - 1.
    """
    packed = array("I", token_ids)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tobytes()


def decode_tokens(data: bytes) -> list[int]:
    """Return the token ids in uint32 little-endian bytes."""
    packed = array("I")
    packed.frombytes(data)
    if sys.byteorder == "big":
        packed.byteswap()
    return packed.tolist()
