"""Small integers that are stored side by side in words of 32 bits, or two in a byte."""

from __future__ import annotations

import torch
from torch import Tensor

#: Bits of a stored word, and values after which the pattern of any width repeats.
_WORD_BITS = 32
_WORD_MASK = 0xFFFFFFFF


def unpack_bits(words: Tensor, bits: int, count: int) -> Tensor:
    """Return unsigned integers that follow each other without gaps, the lowest bits first.

    Args:
        words: [rows, num_words] int32.
        bits: Of each integer, 1 to 8.
        count: Integers of a row.

    Returns:
        [rows, count] uint8.
    """
    if bits in (4, 8):
        stored = words.contiguous().view(torch.uint8)
        return (unpack_nibbles(stored) if bits == 4 else stored)[:, :count]
    starts = torch.arange(count) * bits
    index, shift = starts // _WORD_BITS, starts % _WORD_BITS
    # One more word, so that the last integer may look beyond the end.
    wide = torch.nn.functional.pad(words.long() & _WORD_MASK, (0, 1))
    low = wide.index_select(1, index) >> shift
    high = wide.index_select(1, index + 1) << (_WORD_BITS - shift)
    return ((low | high) & ((1 << bits) - 1)).to(torch.uint8)


def num_words(count: int, bits: int) -> int:
    """Return the words that hold `count` integers."""
    return -(-count * bits // _WORD_BITS)


def unpack_nibbles(stored: Tensor) -> Tensor:
    """Return the halves of bytes, the lower half first: [..., 2 * n] uint8 from [..., n] uint8."""
    return torch.stack((stored & 0xF, stored >> 4), dim=-1).flatten(-2)
