"""Computes a dense weight piece by piece, so that float32 numbers never exist for all of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

#: Numbers of one piece. A megabyte of float32 stays in a core's cache while it is computed.
_PIECE_SIZE = 1 << 18
#: Pieces begin at multiples of this many rows, so that packed words are not cut.
_ROW_MULTIPLE = 32


def dense_weight(
    shape: tuple[int, int], dtype: torch.dtype, compute: Callable[[slice], Tensor]
) -> Tensor:
    """Return a weight [out, in] whose rows are computed in float32 and rounded once.

    Args:
        shape: Of the result.
        dtype: Of the result.
        compute: Returns the float32 numbers of some rows.
    """
    num_rows, num_columns = shape
    weight = torch.empty(shape, dtype=dtype)
    step = max(1, _PIECE_SIZE // num_columns // _ROW_MULTIPLE) * _ROW_MULTIPLE
    for start in range(0, num_rows, step):
        rows = slice(start, min(start + step, num_rows))
        weight[rows] = compute(rows)
    return weight


@dataclass(frozen=True, slots=True)
class Tiles:
    """Rectangles of a weight [out, in] that share a scale.

    Attributes:
        num_rows: Rows of a rectangle.
        column_of: [in] int64: which column of the scales belongs to each column of the weight.
    """

    num_rows: int
    column_of: Tensor

    @classmethod
    def of(cls, num_rows: int, num_columns: int, width: int) -> Tiles:
        """Return rectangles of one size, for a weight with `width` columns."""
        return cls(num_rows, torch.arange(width) // num_columns)

    def spread(self, scales: Tensor, rows: slice) -> Tensor:
        """Return the scale of each number of some rows, [rows, in], from a table of scales."""
        wanted = torch.arange(rows.start, rows.stop) // self.num_rows
        return scales.index_select(0, wanted).index_select(1, self.column_of)
