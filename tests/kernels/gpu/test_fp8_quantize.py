"""The quantizing Triton kernels against the reference: on a GPU, or interpreted."""

from __future__ import annotations

import math
import os
from typing import Literal

import pytest
import torch
from torch import Tensor

from batchmill.kernels.ops.dispatch import Backend
from batchmill.kernels.ops.fp8_fused import gated_activation_fp8, rms_norm_fp8
from batchmill.kernels.ops.fp8_linear import Fp8Linear, Fp8Reference
from batchmill.kernels.ops.fp8_quantize import quantize_fp8
from batchmill.kernels.reference.fp8_rows import Fp8Rows

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton and the kernels are first imported
pytest.importorskip("triton", reason="triton is not installed; `make setup` installs it on Linux")
from batchmill.kernels.ops.gated_activation import (  # noqa: E402
    gelu_and_mul,
    silu_and_mul,
)
from batchmill.kernels.ops.rms_norm import add_rms_norm, rms_norm  # noqa: E402

os.environ.pop("TRITON_INTERPRET", None)

#: Parts of a block, whole blocks, and rows that are longer than a program holds.
SIZES = [16, 96, 576, 4112, 16384, 20016, 33024]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture(autouse=True)
def _interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    if DEVICE == "cpu":  # Triton looks again when it first launches a kernel
        monkeypatch.setenv("TRITON_INTERPRET", "1")


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(DEVICE, dtype)


def rounds_alike(x: Tensor) -> Tensor:
    """Return which numbers the interpreter rounds to eight bits as a GPU does.

    The interpreter rounds ties up, loses carries (1.99 becomes 1, not 2), and rounds numbers below
    2**-6 twice.
    """
    most = x.float().abs().amax(dim=1, keepdim=True)
    mantissa, exponent = torch.frexp(x.float() * (torch.full_like(most, 448) / most))
    steps = mantissa.abs() * 16  # 8 to 16
    is_tie = (steps - steps.floor() - 0.5).abs() < 1e-5
    return (steps < 15.49) & ~is_tie & (exponent >= -5)


def assert_same(got: Fp8Rows, want: Fp8Rows, x: Tensor) -> None:
    assert torch.equal(got.scales.nan_to_num(nan=-7), want.scales.nan_to_num(nan=-7))
    differs = got.values.float() != want.values.float()
    if DEVICE == "cpu":
        alike = rounds_alike(x)
        assert alike[want.scales.flatten() > 0].float().mean() > 0.9
        differs &= alike
    assert not bool(differs.any())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_numbers_and_scales_equal_the_references_to_the_bit(size: int, dtype: torch.dtype) -> None:
    x = normal(6, size, dtype=dtype)
    x[1], x[2] = 0, x[2] * 1e-4
    x[3] *= 1e4 if dtype == torch.float16 else 1e30
    x[4] = 1e-38 if dtype != torch.float16 else 0.0
    if dtype == torch.float16:
        x[3].clamp_(-60000, 60000)
    assert_same(quantize_fp8(x, backend="triton"), quantize_fp8(x, backend="reference"), x)


@pytest.mark.parametrize("size", [32, 20016])
def test_numbers_that_have_eight_bits_are_unchanged(size: int) -> None:
    x = normal(4, size).clamp(-3, 3).to(torch.float8_e4m3fn).float()
    x[:, 0] = torch.tensor([448.0, -448.0, 448.0, -448.0])
    powers = torch.tensor([[1.0], [2.0**-9], [2.0**20], [2.0**-60]], device=DEVICE)
    values, scales = quantize_fp8(x * powers, backend="triton")
    assert torch.equal(values.float(), x)
    assert torch.equal(scales, powers)


@pytest.mark.parametrize("size", [48, 20016])
def test_a_row_that_is_not_finite_does_not_affect_others(size: int) -> None:
    x = normal(5, size)
    clean = quantize_fp8(x, backend="triton")
    x[1, 3], x[2, 0], x[4, size - 1] = math.nan, math.inf, -math.inf
    values, scales = quantize_fp8(x, backend="triton")
    assert scales.isnan().flatten().tolist() == [False, True, True, False, True]
    assert not values[[1, 2, 4]].float().any()
    assert torch.equal(values[[0, 3]].float(), clean.values[[0, 3]].float())
    assert torch.equal(scales[[0, 3]], clean.scales[[0, 3]])


def test_rows_with_gaps_and_empty_batches() -> None:
    wide = normal(5, 100)
    part = wide[:, 3:51]
    assert_same(quantize_fp8(part, backend="triton"), quantize_fp8(part, backend="reference"), part)
    values, scales = quantize_fp8(normal(0, 48), backend="triton")
    assert (list(values.shape), list(scales.shape)) == ([0, 48], [0, 1])


def test_a_product_of_quantized_rows_equals_the_references() -> None:
    weight, bias = normal(48, 96).bfloat16(), normal(48).bfloat16()
    x = normal(7, 96).clamp(-3, 3).to(torch.float8_e4m3fn).bfloat16()
    x[:, 0] = 448
    x[3, 5] = math.nan
    got, want = (Fp8Linear(weight, bias, backend=backend)(x) for backend in ("triton", "reference"))
    assert got[3].isnan().all()
    assert torch.equal(got.nan_to_num(nan=7.5), want.nan_to_num(nan=7.5))


def assert_equal(got: Fp8Rows, want: Fp8Rows) -> None:
    assert torch.equal(got.values.float(), want.values.float())
    assert torch.equal(got.scales.nan_to_num(nan=-7), want.scales.nan_to_num(nan=-7))


@pytest.mark.parametrize("backend", ["triton", "reference"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [16, 96, 4112])
def test_a_quantizing_norm_equals_the_norm_then_the_quantization(
    size: int, dtype: torch.dtype, backend: Backend
) -> None:
    x, weight = normal(7, size, dtype=dtype), normal(size, dtype=dtype)
    residual = normal(8, size, dtype=dtype)[:7].clone()
    residual[2, 3], residual[5, size - 1] = math.nan, math.nan
    want = quantize_fp8(rms_norm(residual, weight, 1e-5, backend=backend), backend=backend)
    assert_equal(rms_norm_fp8(None, residual, weight, 1e-5, backend=backend), want)
    summed = residual.clone()
    normed = add_rms_norm(x, summed, weight, 1e-5, backend=backend)
    assert_equal(
        rms_norm_fp8(x, residual, weight, 1e-5, backend=backend),
        quantize_fp8(normed, backend=backend),
    )
    assert torch.equal(residual.nan_to_num(), summed.nan_to_num())


def test_a_norm_by_a_float32_weight_quantizes_rounded_numbers() -> None:
    x, weight = normal(5, 96, dtype=torch.float16), normal(96)
    normed = rms_norm(x, weight, 1e-6, backend="triton")
    assert normed.dtype == torch.float16
    got = rms_norm_fp8(None, x, weight, 1e-6, backend="triton")
    assert_equal(got, quantize_fp8(normed, backend="triton"))


@pytest.mark.parametrize("backend", ["triton", "reference"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [16, 1504, 20016])
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_a_quantizing_gate_equals_the_gate_then_the_quantization(
    activation: Literal["silu", "gelu_tanh"], size: int, dtype: torch.dtype, backend: Backend
) -> None:
    gate_up = normal(4, 2 * size, dtype=dtype)
    gate_up[0, 0], gate_up[3, 0] = 30.0, -30.0
    op = silu_and_mul if activation == "silu" else gelu_and_mul
    want = quantize_fp8(op(gate_up, backend=backend), backend=backend)
    assert_equal(gated_activation_fp8(gate_up, activation=activation, backend=backend), want)


def test_fused_kernels_keep_nan_and_infinity_in_their_row() -> None:
    gate_up, clean = normal(4, 2 * 48), normal(4, 2 * 48)
    gate_up[1, 50], gate_up[2, 3] = math.nan, math.nan
    got = gated_activation_fp8(gate_up, activation="silu", backend="triton")
    want = gated_activation_fp8(clean, activation="silu", backend="triton")
    assert got.scales.isnan().flatten().tolist() == [False, True, True, False]
    assert not got.values[1:3].float().any()
    for row in (0, 3):
        assert torch.equal(got.values[row].float(), want.values[row].float())


def test_products_take_quantized_rows() -> None:
    weight, x = normal(48, 96).bfloat16(), normal(5, 96).bfloat16()
    for linear in (Fp8Linear(weight, None, backend="reference"), Fp8Reference(weight, None)):
        assert torch.equal(linear(quantize_fp8(x, backend="reference")), linear(x))
