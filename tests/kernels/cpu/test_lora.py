"""The C++ backend of `add_lora`, on each instruction set of this CPU."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from batchmill.kernels.cpu.bindings import add_lora_cpp
from batchmill.kernels.cpu.isa import Isa
from batchmill.kernels.ops.lora import LoraPair, LoraRows, add_lora, add_lora_reference

from .checks import assert_near, dtypes, isas, library

#: Columns of the parts, inputs, and for each group its rank and number of rows.
SHAPES = {
    "one row each": ((40, 13), 37, [(8, 1), (16, 1), (5, 1)]),
    "empty group": ((64,), 64, [(8, 0), (16, 6)]),
    "one adapter": ((576, 192, 192), 576, [(16, 8)]),
    "many rows": ((300, 300), 70, [(64, 150), (1, 67), (32, 7)]),
}
shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
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


@isas
@dtypes
@shapes
def test_contributions_equal_the_reference(isa: Isa, dtype: torch.dtype, shape: Shape) -> None:
    out, x, groups = make_groups(shape, dtype)
    before, want = out.clone(), out.float()
    add_lora_reference(want, x.float(), wide(groups), shape[0])
    add_lora_cpp(out, x, groups, shape[0], library=library(isa))
    assert_near(out, want)
    others = torch.ones(len(x), dtype=torch.bool)
    others[torch.cat([rows for rows, _ in groups])] = False
    assert torch.equal(out[others], before[others])


@isas
def test_a_product_in_float_takes_narrow_adapters(isa: Isa) -> None:
    out, x, groups = make_groups(SHAPES["many rows"], torch.bfloat16)
    out, widths = out.float(), SHAPES["many rows"][0]
    want = out.clone()
    add_lora_reference(want, x.float(), wide(groups), widths)
    add_lora_cpp(out, x, groups, widths, library=library(isa))
    assert_near(out, want)


def test_rows_outside_are_refused() -> None:
    out, x, [group] = make_groups(((8,), 8, [(4, 3)]), torch.float32)
    for rows in (torch.tensor([-1, 0]), torch.tensor([0, len(x)]), torch.tensor([0]).int()):
        with pytest.raises(ValueError, match="rows"):
            add_lora(out, x, [LoraRows(rows, group.pair)], (8,), backend="cpp")
