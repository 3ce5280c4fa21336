"""LoRA adapters in plain torch, and what every implementation takes; see `ops/lora.py`."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

#: Most rows of a tile of `LoraTiles`; a product on a GPU's matrix unit takes at least as many.
TILE_ROWS = 16


class LoraPair(NamedTuple):
    """What an adapter adds to one matrix.

    Attributes:
        down: [num_parts * rank, in], contiguous: the parts' first factors, one after another.
        up: [rank, out], contiguous: the second factor, transposed, already multiplied by the
            adapter's scale. Parts of the columns belong to parts of `down`.
    """

    down: Tensor
    up: Tensor

    @property
    def num_bytes(self) -> int:
        """Memory of both."""
        return self.down.nbytes + self.up.nbytes


class LoraRows(NamedTuple):
    """The rows of one adapter.

    Attributes:
        rows: [num_rows] int64, ascending; no row is in two groups of a call.
        pair: The adapter's matrices for this product, in the dtype of x.
    """

    rows: Tensor
    pair: LoraPair


class LoraTiles(NamedTuple):
    """Rows in tiles of one adapter each: tensors at fixed addresses, which each replay reads.

    Attributes:
        rows: [num_rows] int64: the rows of the first tile, those of the second one, ...; what lies
            behind the last tile is not read.
        starts: [num_tiles + 1] int32, where each tile begins in `rows`, then where the last one
            ends. A tile has at most `TILE_ROWS` rows, and none if it is padding.
        pairs: [num_tiles, 3] int64: the addresses of `LoraPair.down` and `up`, and the rank; 0 if
            the adapter leaves this matrix alone.
        max_rank: The largest rank that there may be.
    """

    rows: Tensor
    starts: Tensor
    pairs: Tensor
    max_rank: int


def add_lora_reference(
    out: Tensor, x: Tensor, groups: Sequence[LoraRows], widths: Sequence[int]
) -> None:
    """Compute `add_lora` in plain torch."""
    for rows, (down, up) in groups:
        low = F.linear(x.index_select(0, rows), down)
        parts = zip(low.split(len(up), dim=1), up.split(list(widths), dim=1), strict=True)
        start = 0
        for width, (factors, weight) in zip(widths, parts, strict=True):
            added = factors @ weight
            out[:, start : start + width].index_add_(0, rows, added)
            start += width


def add_lora_tiles_reference(
    out: Tensor, x: Tensor, tiles: LoraTiles, widths: Sequence[int]
) -> None:
    """Compute `add_lora_tiles` in plain torch, on a CPU only.

    Raises:
        ValueError: x is on another device, whose addresses the host cannot read.
    """
    if x.device.type != "cpu":
        raise ValueError(
            f"the reference of add_lora_tiles reads addresses on the host, and x is on {x.device}: "
            "use the backend 'triton'"
        )
    starts = tiles.starts.tolist()
    groups = []
    for number, (down, up, rank) in enumerate(tiles.pairs.tolist()):
        rows = tiles.rows[starts[number] : starts[number + 1]]
        if rank and len(rows):
            pair = LoraPair(
                _tensor_at(down, (len(widths) * rank, x.shape[1]), x.dtype),
                _tensor_at(up, (rank, out.shape[1]), x.dtype),
            )
            groups.append(LoraRows(rows, pair))
    add_lora_reference(out, x, groups, widths)


def _tensor_at(address: int, shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
    """Return what lies at an address of the host."""
    memory = (ctypes.c_char * (math.prod(shape) * dtype.itemsize)).from_address(address)
    return torch.frombuffer(memory, dtype=dtype).view(shape)
