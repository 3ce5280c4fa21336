"""The C++ backend of `add_lora`, on each instruction set of this CPU."""

from __future__ import annotations

import pytest
import torch

from batchmill.kernels.cpu.bindings import add_lora_cpp
from batchmill.kernels.cpu.isa import Isa
from batchmill.kernels.ops.lora import add_lora
from batchmill.kernels.reference.lora import LoraRows, add_lora_reference

from ..lora_groups import SHAPES, Shape, make_groups, wide
from .checks import assert_near, dtypes, isas, library

shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


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
    outside = [[-1, 0], [0, len(x)], [0, len(x), 1]]
    for rows in (*map(torch.tensor, outside), torch.tensor([0]).int()):
        with pytest.raises(ValueError, match="rows"):
            add_lora(out, x, [LoraRows(rows, group.pair)], (8,), backend="cpp")
