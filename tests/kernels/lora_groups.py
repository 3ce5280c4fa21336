"""Groups of rows of adapters of several ranks, for the tests of `add_lora`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from batchmill.kernels.reference.lora import TILE_ROWS, LoraPair, LoraRows, LoraTiles

#: Columns of the parts, inputs, and for each group its rank and number of rows.
SHAPES = {
    "one row each": ((40, 13), 37, [(8, 1), (16, 1), (5, 1)]),
    "empty group": ((64,), 64, [(8, 0), (16, 6)]),
    "one adapter": ((576, 192, 192), 576, [(16, 8)]),
    "many rows": ((300, 300), 70, [(64, 150), (1, 67), (32, 7)]),
}
Shape = tuple[tuple[int, ...], int, list[tuple[int, int]]]


def make_groups(shape: Shape, dtype: torch.dtype) -> tuple[Tensor, Tensor, list[LoraRows]]:
    """Return a product, its argument and groups; two rows are in no group."""
    torch.manual_seed(0)
    widths, inputs, sizes = shape
    num_rows = sum(count for _, count in sizes) + 2
    order = torch.randperm(num_rows)
    groups, start = [], 0
    for rank, count in sizes:
        down = torch.randn(len(widths) * rank, inputs) / inputs**0.5
        up = torch.randn(rank, sum(widths)) / rank**0.5
        rows = order[start : start + count].sort().values
        groups.append(LoraRows(rows, LoraPair(down.to(dtype), up.to(dtype))))
        start += count
    x = torch.randn(num_rows, inputs).to(dtype)
    return torch.randn(num_rows, sum(widths)).to(dtype), x, groups


def wide(groups: Sequence[LoraRows]) -> list[LoraRows]:
    return [LoraRows(rows, LoraPair(*(each.float() for each in pair))) for rows, pair in groups]


def make_tiles(groups: Sequence[LoraRows], *, num_spare: int, max_rank: int) -> LoraTiles:
    """Return the rows of groups in tiles; spare tiles and rows name what is not there."""
    starts, pairs = [0], []
    for rows, (down, up) in groups:
        for part in rows.split(TILE_ROWS):
            if len(part):
                starts.append(starts[-1] + len(part))
                pairs.append((down.data_ptr(), up.data_ptr(), len(up)))
    starts += [starts[-1]] * num_spare
    pairs += [(1, 1, 1)] * num_spare
    rows = torch.cat([*(rows for rows, _ in groups), groups[0].rows.new_full((num_spare,), -1)])
    device = rows.device
    return LoraTiles(
        rows,
        torch.tensor(starts, dtype=torch.int32, device=device),
        torch.tensor(pairs, dtype=torch.int64, device=device),
        max_rank,
    )
