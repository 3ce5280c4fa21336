"""Products of 4-bit weights: near the reference on each instruction set, row by row."""

from __future__ import annotations

import ctypes
from functools import lru_cache

import pytest
import torch
import torch.nn.functional as F

from batchmill.kernels.cpu import library as cpp_library
from batchmill.kernels.cpu.build import build_library
from batchmill.kernels.cpu.isa import Isa, supported_isas
from batchmill.kernels.ops.grouped_weight import GroupedWeight, quantize_groups
from batchmill.kernels.ops.int4_linear import (
    Int4Linear,
    Int4Reference,
    make_int4_linear,
    quantize_blocks,
)

isas = pytest.mark.parametrize("isa", supported_isas(), ids=lambda isa: isa.name)
#: (out, in): whole and partial panels; whole blocks and parts of them.
SHAPES = [(64, 64), (100, 48), (5, 7), (70, 2112)]
#: Sums of a block are exact; blocks are added in float32, in another order than the reference's.
ATOL, RTOL = 1e-3, 1e-4


@lru_cache
def library(isa: Isa) -> ctypes.CDLL:
    return cpp_library.load_library(build_library(isa))


def stored(shape: tuple[int, int], group_size: int, *, has_zeros: bool) -> GroupedWeight:
    """Return random integers with scales and zero points, as a checkpoint holds them."""
    table = (shape[0], shape[1] // group_size)
    return GroupedWeight(
        q=torch.randint(0, 16, shape, dtype=torch.uint8),
        scales=torch.empty(table).uniform_(0.001, 0.02).half().float(),
        zeros=torch.randint(0, 16, table).float() if has_zeros else None,
        group_size=group_size,
        dtype=torch.float32,
    )


@isas
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products_equal_the_reference(isa: Isa, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    weight = torch.randn(shape).to(dtype)
    linear, reference = Int4Linear([weight], [None], library(isa)), Int4Reference(weight, None)
    for num_rows in (0, 1, 7, 101):
        x = torch.randn(num_rows, shape[1])
        x[:, 0] *= 100
        if num_rows > 6:
            x[3], x[4], x[5] = 0, 1e-35, x[5] * 10
        x = x.to(dtype)
        got, out = linear(x), torch.empty(num_rows, shape[0])
        assert got.dtype == dtype
        assert torch.equal(linear(x, out=out).to(dtype), got)
        for row, want in zip(out, reference(x.float()), strict=True):
            largest = max(1.0, want.abs().max().item())
            torch.testing.assert_close(row / largest, want / largest, atol=ATOL, rtol=RTOL)


@isas
@pytest.mark.parametrize("has_zeros", [False, True], ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("group_size", [32, 64, 128, 384])
def test_stored_integers_are_multiplied_as_they_are(
    isa: Isa, group_size: int, has_zeros: bool
) -> None:
    torch.manual_seed(0)
    weight = stored((70, 384), group_size, has_zeros=has_zeros)
    x = torch.randn(9, 384)
    quantized, steps = quantize_blocks(x)
    want = F.linear((quantized * steps[..., None]).flatten(1).double(), weight.dense().double())
    got = Int4Linear([weight], [None], library(isa))(x)
    torch.testing.assert_close(got, want.float(), atol=ATOL, rtol=RTOL)


@isas
def test_scales_far_apart_keep_their_digits(isa: Isa) -> None:
    torch.manual_seed(0)
    weight = stored((16, 64), 32, has_zeros=False)
    weight.scales[:, 0], weight.scales[:, 1] = 3e-9, 5e-12
    weight.scales[8:] *= 1e20
    x = torch.zeros(2, 64)
    x[0, :32], x[1, 32:] = 1, 1
    want = F.linear(x.double(), weight.dense().double()).float()
    assert want.abs().min() > 1e-12  # no sum is nothing but the error of its order
    torch.testing.assert_close(
        Int4Linear([weight], [None], library(isa))(x), want, rtol=1e-3, atol=0
    )


@isas
def test_a_row_is_the_same_in_every_batch_and_one_that_is_not_finite_changes_no_other(
    isa: Isa,
) -> None:
    torch.manual_seed(0)
    linear = Int4Linear([torch.randn(100, 96)], [torch.randn(100)], library(isa))
    x = torch.randn(67, 96)
    alone = torch.cat([linear(row[None]) for row in x])
    assert torch.equal(linear(x), alone)
    x[3, 40], x[9, 0] = torch.nan, torch.inf
    got = linear(x)
    assert got[[3, 9]].isnan().all()
    others = [row for row in range(67) if row not in (3, 9)]
    assert torch.equal(got[others], alone[others])


@isas
def test_gated_product_multiplies_silu_of_the_gate_with_the_other_part(isa: Isa) -> None:
    torch.manual_seed(0)
    gate, up, bias = torch.randn(100, 64), stored((100, 64), 32, has_zeros=False), torch.randn(100)
    linear = Int4Linear([gate, up], [bias, None], library(isa))
    x = torch.randn(17, 64)
    parts = Int4Reference(gate, bias)(x), Int4Reference(up, None)(x)
    torch.testing.assert_close(linear(x), F.silu(parts[0]) * parts[1], atol=ATOL, rtol=RTOL)
    torch.testing.assert_close(linear.ungated()(x), torch.cat(parts, dim=1), atol=ATOL, rtol=RTOL)


def test_weights_on_a_grid_of_16_steps_are_kept() -> None:
    weight = stored((6, 64), 32, has_zeros=True)
    weight.q[:, ::32], weight.q[:, 1::32] = 0, 15
    quantized = quantize_groups(weight.dense())
    assert torch.equal(quantized.q, weight.q)
    torch.testing.assert_close(quantized.dense(), weight.dense(), rtol=2e-3, atol=1e-4)


def test_groups_of_zeros_and_of_equal_numbers_keep_their_values() -> None:
    torch.manual_seed(0)
    weight = torch.randn(7, 64)
    weight[0] = 0
    weight[1, :32], weight[2, :32], weight[3, 32:] = 0, 0.75, -3
    weight[4, :32] = 2 + 1e-6 * torch.randn(32)
    weight[5, :32] = 1e-9  # a scale too small for a half beside that of the row's other group
    weight[6] = 1e-20
    largest_of_group = weight.view(7, 2, 32).abs().amax(-1)
    bound = (largest_of_group / 14).repeat_interleave(32, dim=1) + 1e-8
    assert ((quantize_groups(weight).dense() - weight).abs() <= bound).all()
    x = torch.randn(3, 64)
    torch.testing.assert_close(
        Int4Linear([weight], [None])(x), Int4Reference(weight, None)(x), atol=ATOL, rtol=RTOL
    )


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.zeros(2, 32, dtype=torch.float64), "got torch.float64 on cpu"),
        (torch.zeros(2, 32, device="meta"), "got torch.float32 on meta"),
        (stored((2, 96), 48, has_zeros=False), "with 96 inputs have 48 of them: it must be 32"),
    ],
    ids=["dtype", "device", "group"],
)
def test_other_weights_are_refused(weight: torch.Tensor | GroupedWeight, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_int4_linear(weight)


def test_parts_with_groups_of_another_size_and_unknown_backends_are_refused() -> None:
    parts = [stored((2, 64), size, has_zeros=False) for size in (32, 64)]
    with pytest.raises(ValueError, match="groups of one size; got 32 and 64"):
        Int4Linear(parts, [None, None])
    with pytest.raises(ValueError, match="int4_linear has no 'triton' backend"):
        make_int4_linear(parts[0], backend="triton")
