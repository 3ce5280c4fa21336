"""Products in eight-bit floats: the reference against float64, torch's product against it."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from batchmill.kernels.ops.fp8_linear import (
    Fp8Linear,
    Fp8Reference,
    make_fp8_linear,
)
from batchmill.kernels.ops.fp8_quantize import quantize_fp8
from batchmill.kernels.ops.fp8_weight import quantize_fp8_weight
from batchmill.kernels.reference.fp8_rows import FP8

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
#: (out, in): one tile of 16, odd multiples, more columns than are quantized at once.
SHAPES = [(16, 16), (48, 80), (96, 576), (112, 1520), (4112, 32)]


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def with_outliers(num_rows: int, size: int) -> Tensor:
    """Return rows with a few large values; one is zero, one too small for a scale, one huge."""
    x = normal(num_rows, size)
    x[:, 0] *= 100
    if num_rows > 6:
        x[3], x[4], x[5] = 0, 1e-35, x[5] * 1e30
    return x


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_is_stored_over_its_largest_magnitude_to_the_nearest_eighth(
    dtype: torch.dtype,
) -> None:
    x = normal(9, 200, dtype=dtype)
    values, scales = quantize_fp8(x, backend="reference")
    assert (values.dtype, scales.dtype, list(scales.shape)) == (FP8, torch.float32, [9, 1])
    assert values.float().abs().amax(dim=1).tolist() == [448.0] * 9
    wide = x.double()
    error = (values.double() * scales.double() - wide).abs()
    # Half of the last of three bits, and below 2**-6 half of the smallest number; float32 rounding.
    assert bool((error <= wide.abs() / 16 * 1.000001 + scales * 2**-10).all())


def test_rows_without_a_magnitude_are_zeros_and_huge_ones_stay_finite() -> None:
    values, scales = quantize_fp8(with_outliers(7, 48), backend="reference")
    assert not values[3:5].float().any()
    assert values[5].float().abs().max() == 448
    assert bool(scales.isfinite().all())


def test_a_row_that_is_not_finite_has_the_scale_nan_and_zeros() -> None:
    x = normal(5, 32)
    x[1, 3], x[2, 0], x[4, 31] = math.nan, math.inf, -math.inf
    values, scales = quantize_fp8(x, backend="reference")
    assert scales.isnan().flatten().tolist() == [False, True, True, False, True]
    assert not values[[1, 2, 4]].float().any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_reference_multiplies_the_stored_numbers(
    shape: tuple[int, int], dtype: torch.dtype
) -> None:
    weight, bias = normal(*shape).to(dtype), normal(shape[0]).to(dtype)
    stored = quantize_fp8_weight(weight)
    wide_weight = stored.values.double() * stored.scales
    linear = make_fp8_linear(weight, bias, backend="reference")
    # Sums of float32; then one rounding to the dtype.
    relative = {torch.float32: 2e-6, torch.bfloat16: 2**-8, torch.float16: 2**-11}[dtype]
    for num_rows in (0, 1, 7, 65):
        x = normal(num_rows, shape[1], dtype=dtype)
        rows = quantize_fp8(x, backend="reference")
        wide = rows.values.double() * rows.scales
        want = wide @ wide_weight.T + bias.double()
        terms = wide.abs() @ wide_weight.abs().T + bias.double().abs()
        got = linear(x)
        assert got.dtype == dtype
        allowed = relative * want.abs() + 2e-6 * terms
        assert bool(((got.double() - want).abs() <= allowed).all())


def test_a_product_is_near_the_unquantized_one() -> None:
    weight, x = normal(304, 1536), normal(20, 1536)
    want = x @ weight.T
    error = (make_fp8_linear(weight, backend="reference")(x) - want).pow(2).mean().sqrt()
    # Both factors are wrong by a thirtieth at most, uniformly: 2**-4 / sqrt(3) each at worst.
    assert 0 < error / want.pow(2).mean().sqrt() < 0.05


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_torchs_product_takes_these_layouts_and_equals_the_reference(
    shape: tuple[int, int], with_bias: bool
) -> None:
    weight = normal(*shape).bfloat16()
    bias = normal(shape[0]).bfloat16() if with_bias else None
    linear = Fp8Linear(weight, bias, backend="reference")
    reference = Fp8Reference(weight, bias)
    for num_rows in (1, 7, 16, 65):
        x = with_outliers(num_rows, shape[1]).bfloat16()
        got, want = linear(x), reference(x)
        assert got.dtype == torch.bfloat16
        terms = Fp8Reference(weight.abs(), None)(x.abs()).float()
        # A rounding to eight bits each, of the product and again with a bias; sums cancel.
        allowed = 2**-7 * want.float().abs() + 2**-8 * terms.abs() + 0.02
        assert bool(((got.float() - want.float()).abs() <= allowed).all())


def test_a_row_that_is_not_finite_yields_nan_and_does_not_affect_others() -> None:
    weight, bias = normal(80, 128).bfloat16(), normal(80).bfloat16()
    spoilt = torch.zeros(40, dtype=torch.bool)
    spoilt[[0, 17, 39]] = True
    for linear in (Fp8Linear(weight, bias, backend="reference"), Fp8Reference(weight, bias)):
        x = normal(40, 128).bfloat16()
        want = linear(x)
        for row, value in ((0, math.nan), (17, math.inf), (39, -math.inf)):
            x[row, row] = value
        got = linear(x)
        assert got[spoilt].isnan().all()
        assert torch.equal(got[~spoilt], want[~spoilt])


def test_a_row_is_quantized_the_same_in_any_batch() -> None:
    x = normal(70, 576).bfloat16()
    whole = quantize_fp8(x, backend="reference")
    for row in (0, 5, 33, 69):
        alone = quantize_fp8(x[row : row + 1], backend="reference")
        assert torch.equal(alone.values.float(), whole.values[row : row + 1].float())
        assert torch.equal(alone.scales, whole.scales[row : row + 1])


def test_a_quantized_weight_takes_a_byte_per_number_and_a_scale_per_column() -> None:
    linear = Fp8Linear(torch.zeros(640, 1024), None)
    tensors = [each for each in vars(linear).values() if isinstance(each, Tensor)]
    assert sum(each.nbytes for each in tensors) == 640 * 1024 + 4 * 640


def test_on_a_gpu_the_call_passes_the_checks_of_torch() -> None:
    # Tensors without data: torch applies the rules of its GPU product to them.
    linear = Fp8Linear(torch.zeros(4112, 32, device="meta").bfloat16(), None, backend="reference")
    for num_rows in (1, 2, 17):
        out = linear(torch.empty(num_rows, 32, device="meta", dtype=torch.bfloat16))
        assert (list(out.shape), out.dtype) == ([num_rows, 4112], torch.bfloat16)


def test_weights_that_cannot_be_multiplied_are_refused_by_name() -> None:
    for weight, message in (
        (torch.zeros(16, 16).double(), "must be float32, bfloat16 or float16, got torch.float64"),
        (torch.zeros(16, 40), r"the weight is \[16, 40\], and fp8 products need multiples of 16"),
        (torch.zeros(24, 16), r"the weight is \[24, 16\], and fp8 products need multiples of 16"),
    ):
        for backend in ("triton", "reference"):
            with pytest.raises(ValueError, match=message):
                make_fp8_linear(weight, backend=backend)
    with pytest.raises(ValueError, match="no 'cpp' backend"):
        make_fp8_linear(torch.zeros(16, 16), backend="cpp")
    with pytest.raises(ValueError, match="on a GPU, got a weight on cpu: use int8"):
        make_fp8_linear(torch.zeros(16, 16))
    with pytest.raises(ValueError, match=r"x must be torch\.bfloat16, got torch\.float32"):
        Fp8Linear(torch.zeros(16, 16), None)(torch.zeros(1, 16))
    with pytest.raises(ValueError, match=r"x must be \[num_rows, size\], got \[3\]"):
        quantize_fp8(torch.zeros(3))
