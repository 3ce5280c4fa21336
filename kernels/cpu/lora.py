"""The tables of LoRA adapters that C++ code reads."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import Structure, c_int, c_long, c_void_p
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from batchmill.kernels.reference.lora import LoraPair, LoraRows


class LoraPairStruct(Structure):
    """`BmLoraPair` of lora.h."""

    _fields_ = [("down", c_void_p), ("up", c_void_p), ("rank", c_int), ("num_parts", c_int)]


class LoraRowsStruct(Structure):
    """`BmLoraRows` of lora.h."""

    _fields_ = [
        ("pair", ctypes.POINTER(LoraPairStruct)),
        ("rows", c_void_p),
        ("num_rows", c_long),
    ]


def pair_table(pairs: Sequence[LoraPair | None]) -> ctypes.Array[LoraPairStruct]:
    """Put the addresses of pairs into one table; it does not keep them alive."""
    return (LoraPairStruct * len(pairs))(*map(_pair, pairs))


def _pair(pair: LoraPair | None) -> LoraPairStruct:
    if pair is None:
        return LoraPairStruct()
    rank = len(pair.up)
    return LoraPairStruct(pair.down.data_ptr(), pair.up.data_ptr(), rank, len(pair.down) // rank)


def rows_table(groups: Sequence[LoraRows]) -> ctypes.Array[LoraRowsStruct]:
    """Put the addresses of rows and of their pairs into a table, which keeps only the pairs'."""
    pairs = pair_table([each.pair for each in groups])
    return (LoraRowsStruct * len(groups))(
        *(
            LoraRowsStruct(ctypes.pointer(pairs[index]), each.rows.data_ptr(), len(each.rows))
            for index, each in enumerate(groups)
        )
    )
