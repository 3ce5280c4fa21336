"""Stored integers with scales and zero points: as a dense weight, or kept as they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from batchmill.kernels.ops.grouped_weight import BLOCK, SYMMETRIC_ZERO, GroupedWeight

from .dense import Tiles, dense_weight

#: Bits of the integers that are kept.
KEPT_BITS = 4


@dataclass(frozen=True, slots=True)
class StoredIntegers:
    """A weight [out, in] whose numbers are `(q - zero) * scale`.

    Attributes:
        shape: Of the weight.
        bits: Of each integer, which is 0 to 2^bits - 1.
        rows_of: Returns the integers of some rows, [rows, in] uint8; a slice begins at a multiple
            of 32.
        tiles: Which numbers share a scale and a zero point.
        scales: A table with one entry per tile, float32.
        zeros: As `scales`.
    """

    shape: tuple[int, int]
    bits: int
    rows_of: Callable[[slice], Tensor]
    tiles: Tiles
    scales: Tensor
    zeros: Tensor

    def dense(self, dtype: torch.dtype) -> Tensor:
        """Return the weight in a dtype."""

        def compute(rows: slice) -> Tensor:
            values = self.rows_of(rows).float() - self.tiles.spread(self.zeros, rows)
            return values * self.tiles.spread(self.scales, rows)

        return dense_weight(self.shape, dtype, compute)

    def grouped(self, dtype: torch.dtype) -> GroupedWeight | None:
        """Return the integers for activations in a dtype; None if their groups are not kept.

        Groups are kept if they are 32 neighbours of a row or a multiple of 32, with 4 bits.
        """
        num_rows, num_columns = self.shape
        size, rest = divmod(num_columns, self.scales.shape[1])
        group_of = torch.arange(num_columns) // max(size, 1)
        is_kept = (
            self.bits == KEPT_BITS
            and self.tiles.num_rows == 1
            and rest == 0
            and size % BLOCK == 0
            and torch.equal(self.tiles.column_of, group_of)
        )
        if not is_kept:
            return None
        zeros = None if bool((self.zeros == SYMMETRIC_ZERO).all()) else self.zeros.contiguous()
        q = self.rows_of(slice(0, num_rows)).contiguous()
        return GroupedWeight(q, self.scales.contiguous(), zeros, size, dtype)
