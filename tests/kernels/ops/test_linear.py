"""Packed linears against `F.linear`, on each instruction set and with every fallback."""

from __future__ import annotations

import ctypes
from functools import lru_cache

import pytest
import torch
import torch.nn.functional as F

from batchmill.kernels.cpu.build import build_library
from batchmill.kernels.cpu.isa import Isa, supported_isas
from batchmill.kernels.cpu.library import load_library
from batchmill.kernels.ops.linear import PackedLinear, is_packable, make_linear

#: Instruction sets with VNNI differ from the next ones in int8 products only.
ISAS_OF_FLOATS = [isa for isa in supported_isas() if not isa.name.endswith("_vnni")]
isas = pytest.mark.parametrize("isa", ISAS_OF_FLOATS, ids=lambda isa: isa.name)
#: (out, in): whole and partial panels, sizes below a vector, more than one slice along k.
SHAPES = [(64, 64), (100, 66), (5, 6), (576, 1536), (130, 2)]
#: Relative to the largest result. float32: up to 1536 successive roundings of 2^-24, which mostly
#: cancel; bf16 is rounded once more at the end, to 2^-9.
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 5e-3}


@lru_cache
def library(isa: Isa) -> ctypes.CDLL:
    return load_library(build_library(isa))


def assert_near(got: torch.Tensor, want: torch.Tensor, dtype: torch.dtype) -> None:
    error = (got.float() - want).abs().max()
    assert error <= TOLERANCES[dtype] * want.abs().max(), error


@isas
def test_an_instruction_set_packs_bfloat16_if_its_table_says_so(isa: Isa) -> None:
    weight = torch.zeros(8, 8, dtype=torch.bfloat16)
    assert is_packable(weight, library(isa)) == isa.multiplies_bfloat16


@isas
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_packed_linear_equals_the_plain_one(
    isa: Isa, dtype: torch.dtype, shape: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(shape).to(dtype), torch.randn(shape[0]).to(dtype)
    if not is_packable(weight, library(isa)):
        assert dtype == torch.bfloat16
        assert not isa.multiplies_bfloat16
        return
    linear = PackedLinear([weight], [bias], library(isa))
    unbiased = PackedLinear([weight], [None], library(isa))
    for num_rows in (0, 1, 6, 7, 45, 200):
        x = torch.randn(num_rows, shape[1]).to(dtype)
        want = F.linear(x.float(), weight.float(), bias.float())
        assert linear(x).dtype == dtype
        if num_rows:
            assert_near(linear(x), want, dtype)
            assert_near(linear(x, out=torch.empty(want.shape)), want, torch.float32)
            assert_near(unbiased(x), want - bias.float(), dtype)


@isas
def test_gated_linear_multiplies_silu_of_the_gate_with_the_other_part(isa: Isa) -> None:
    torch.manual_seed(0)
    gate, up = torch.randn(100, 48), torch.randn(100, 48)
    bias = torch.randn(100)
    linear = PackedLinear([gate, up], [bias, None], library(isa))
    x = torch.randn(17, 48)
    assert_near(linear(x), F.silu(F.linear(x, gate, bias)) * F.linear(x, up), torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_make_linear_always_returns_a_correct_product(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight, bias, x = torch.randn(40, 33), torch.randn(40), torch.randn(9, 33)
    want = F.linear(x, weight, bias)
    for backend in ("auto", "reference"):
        linear = make_linear(weight.to(dtype), bias.to(dtype), backend=backend)
        got = linear(x.to(dtype))
        torch.testing.assert_close(got.float(), want, atol=0.1, rtol=0.02)


def test_cpp_is_refused_for_a_weight_that_it_cannot_multiply() -> None:
    with pytest.raises(ValueError, match=r"do not multiply torch.float64 weights \[4, 4\]"):
        make_linear(torch.zeros(4, 4).double(), backend="cpp")


def test_an_unknown_backend_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="no 'numpy' backend; it has 'cpp', 'reference', 'triton'"):
        make_linear(torch.zeros(4, 4), backend="numpy")


def test_a_row_is_the_same_to_the_bit_in_any_batch() -> None:
    torch.manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16):
        weight, x = torch.randn(192, 576).to(dtype), torch.randn(70, 576).to(dtype)
        if not is_packable(weight):
            continue
        linear = PackedLinear([weight], [None])
        whole = linear(x)
        for row in (0, 5, 33, 69):
            assert torch.equal(linear(x[row : row + 1]), whole[row : row + 1])


def test_arguments_of_another_shape_dtype_or_layout_are_errors() -> None:
    linear = PackedLinear([torch.zeros(8, 4)], [None])
    for x in (torch.zeros(3, 5), torch.zeros(4), torch.zeros(4, 3).t(), torch.zeros(3, 4).double()):
        with pytest.raises(ValueError, match="x must be"):
            linear(x)


def test_a_result_of_another_shape_dtype_or_layout_is_an_error() -> None:
    linear, x = PackedLinear([torch.zeros(8, 4)], [None]), torch.zeros(3, 4)
    for out in (torch.zeros(3, 9), torch.zeros(8, 3).t(), torch.zeros(3, 8).double()):
        with pytest.raises(ValueError, match=r"out must be \[3, 8\]"):
            linear(x, out=out)


def test_a_packed_weight_is_one_copy_padded_to_whole_panels() -> None:
    weight = torch.zeros(576, 64)
    packed = PackedLinear([weight], [None]).packed
    assert packed.numel() * 4 == weight.numel() * 4
