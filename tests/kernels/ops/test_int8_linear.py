"""Int8 products: the integers of the reference on each instruction set, row by row."""

from __future__ import annotations

import ctypes
from functools import lru_cache

import pytest
import torch
import torch.nn.functional as F

from batchmill.kernels.cpu.build import build_library
from batchmill.kernels.cpu.isa import Isa, supported_isas
from batchmill.kernels.cpu.library import load_library
from batchmill.kernels.ops.int8_linear import (
    Int8Linear,
    Int8Reference,
    make_int8_linear,
    quantize_rows,
    rotate_rows,
)

isas = pytest.mark.parametrize("isa", supported_isas(), ids=lambda isa: isa.name)
#: (out, in): whole and partial panels; blocks of 64, 16, 2 and 1; partial lanes; two slices.
SHAPES = [(64, 64), (100, 48), (130, 66), (5, 7), (70, 2112)]


@lru_cache
def library(isa: Isa) -> ctypes.CDLL:
    return load_library(build_library(isa))


def with_outliers(num_rows: int, size: int) -> torch.Tensor:
    """Return rows with a few large values; one is zero, one too small for a step, one huge."""
    x = torch.randn(num_rows, size)
    x[:, 0] *= 100
    if num_rows > 6:
        x[3], x[4], x[5] = 0, 1e-35, x[5] * 1e30
    return x


@isas
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_products_equal_the_reference_to_the_bit(
    isa: Isa, dtype: torch.dtype, shape: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    weight = with_outliers(*shape).to(dtype)
    linear, reference = Int8Linear([weight], [None], library(isa)), Int8Reference(weight, None)
    for num_rows in (0, 1, 7, 257):
        x = with_outliers(num_rows, shape[1]).to(dtype)
        got = linear(x)
        assert got.dtype == dtype
        assert torch.equal(got, reference(x))


@isas
def test_half_precision_bias_and_float32_results_are_correct(isa: Isa) -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(70, 96).half(), torch.randn(70)
    linear, reference = Int8Linear([weight], [bias], library(isa)), Int8Reference(weight, bias)
    x = torch.randn(9, 96).half()
    out = linear(x, out=torch.empty(9, 70))
    # float16 rounds to 2^-11; with a fused multiply-add the bias is added to the unrounded product.
    torch.testing.assert_close(out, reference(x).float(), atol=1e-3, rtol=1e-3)
    assert torch.equal(linear(x), out.half())


@isas
def test_gated_product_multiplies_silu_of_the_gate_with_the_other_part(isa: Isa) -> None:
    torch.manual_seed(0)
    gate, up, bias = torch.randn(100, 64), torch.randn(100, 64), torch.randn(100)
    linear = Int8Linear([gate, up], [bias, None], library(isa))
    x = torch.randn(17, 64)
    want = F.silu(Int8Reference(gate, bias)(x)) * Int8Reference(up, None)(x)
    torch.testing.assert_close(linear(x), want, atol=1e-4, rtol=1e-5)


@isas
def test_the_largest_sums_of_the_longest_rows_are_exact(isa: Isa) -> None:
    # All products have the largest magnitude and one sign per column: past 2^24, float32 rounds.
    weight = torch.ones(2, 133_120)
    weight[1] = -1
    x = torch.ones(1, 133_120)
    rotated = [rotate_rows(part) for part in (x, weight)]
    assert (rotated[0][:, ::64] == 64).all()  # the rotation gathers a constant row
    linear = Int8Linear([weight], [None], library(isa))
    assert torch.equal(linear(x), Int8Reference(weight, None)(x))
    signs = torch.where(torch.rand(133_120) < 0.5, -1.0, 1.0)
    # Rotating is its own inverse, times the length: these rows become 127 everywhere.
    dense = rotate_rows(127 * signs[None]) / 64
    linear = Int8Linear([torch.cat([dense, -dense])], [None], library(isa))
    total = 127 * 127 * 133_120
    assert total < 2**31
    want = torch.tensor([[1.0, -1.0]]) * (torch.tensor(float(total)) / 64)
    assert torch.equal(linear(dense), want)


@isas
def test_a_row_that_is_not_finite_yields_nan_and_does_not_affect_others(isa: Isa) -> None:
    torch.manual_seed(0)
    linear = Int8Linear([torch.randn(80, 128)], [torch.randn(80)], library(isa))
    x = torch.randn(40, 128)
    want = linear(x)
    for row, value in ((0, torch.nan), (17, torch.inf), (39, -torch.inf)):
        x[row, row] = value
    got = linear(x)
    spoilt = torch.zeros(40, dtype=torch.bool)
    spoilt[[0, 17, 39]] = True
    assert got[spoilt].isnan().all()
    assert torch.equal(got[~spoilt], want[~spoilt])


@isas
def test_a_row_is_the_same_to_the_bit_in_any_batch(isa: Isa) -> None:
    torch.manual_seed(0)
    linear = Int8Linear([torch.randn(192, 576).bfloat16()], [torch.randn(192)], library(isa))
    x = torch.randn(70, 576).bfloat16()
    whole = linear(x)
    for row in (0, 5, 33, 69):
        assert torch.equal(linear(x[row : row + 1]), whole[row : row + 1])


def test_rotation_keeps_products_and_spreads_a_large_value() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(3, 192).double(), torch.randn(4, 192).double()
    rotated = rotate_rows(a.float()).double() @ rotate_rows(b.float()).double().T / 64
    torch.testing.assert_close(rotated, a @ b.T, atol=1e-4, rtol=1e-5)
    x = torch.randn(1, 192)
    x[0, 70] = 1000
    quantized, steps = quantize_rows(x)
    assert steps.item() < 1100 / 127
    assert (quantized * steps[:, None] - rotate_rows(x)).abs().max() <= steps.item() * 0.50001


def test_a_product_is_near_the_unquantized_one_despite_large_values() -> None:
    torch.manual_seed(0)
    weight, x = torch.randn(300, 1536), torch.randn(20, 1536)
    x[:, 7] *= 300
    want = x @ weight.T
    error = (make_int8_linear(weight)(x) - want).pow(2).mean().sqrt() / want.pow(2).mean().sqrt()
    assert error < 0.02


def test_a_quantized_weight_takes_a_byte_per_number_and_two_lanes_per_column() -> None:
    weight = torch.zeros(640, 1024)
    assert Int8Linear([weight], [None]).packed.nbytes == weight.numel() + 640 * 8


def test_weights_that_cannot_be_quantized_are_refused_by_name() -> None:
    for weight, message in (
        (torch.zeros(4, 4).double(), "float32, bfloat16 or float16 weights; got torch.float64"),
        (torch.zeros(2, 133_145), "133145 input features; with more than 133144"),
    ):
        for backend in ("cpp", "reference"):
            with pytest.raises(ValueError, match=message):
                make_int8_linear(weight, backend=backend)
    with pytest.raises(ValueError, match="no 'triton' backend"):
        make_int8_linear(torch.zeros(4, 4), backend="triton")
    with pytest.raises(ValueError, match=r"one weight, or two of one shape; got"):
        Int8Linear([torch.zeros(4, 4), torch.zeros(5, 4)], [None, None])


def test_arguments_of_another_shape_dtype_or_layout_are_errors() -> None:
    linear = Int8Linear([torch.zeros(8, 4)], [None])
    for x in (torch.zeros(3, 5), torch.zeros(4, 3).t(), torch.zeros(3, 4).double()):
        with pytest.raises(ValueError, match="x must be"):
            linear(x)
    with pytest.raises(ValueError, match=r"out must be \[3, 8\]"):
        linear(torch.zeros(3, 4), out=torch.zeros(3, 9))
