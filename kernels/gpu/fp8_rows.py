"""Functions shared by the Triton kernels that quantize rows to eight-bit floats."""

# Triton traces its kernels: no Python annotation would be true of their arguments.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls

from __future__ import annotations

import torch
import triton
import triton.language as tl

from batchmill.kernels.reference import fp8_rows
from batchmill.kernels.reference.fp8_rows import Fp8Rows

from .launch import check_fp8

#: Numbers that a program keeps in registers; longer rows are computed twice.
MAX_ROW_BLOCK = 16384
FP8_MAX = tl.constexpr(fp8_rows.FP8_MAX)
LEAST_MAX = tl.constexpr(fp8_rows.LEAST_MAX)


@triton.jit
def largest_magnitude(values, AXIS: tl.constexpr):
    """Return the largest magnitude of float32 numbers; infinity if one is not finite."""
    magnitudes = tl.abs(values)
    # NaN fails the comparison; a maximum alone would ignore it.
    return tl.max(tl.where(magnitudes < float("inf"), magnitudes, float("inf")), AXIS)


@triton.jit
def step_and_scale(most):
    """Return the factor that quantizes a row, and the value of one unit of the result.

    Both are 0 for a row of zeros, and 0 and NaN for a row that is not finite.
    """
    is_finite = most < float("inf")
    is_scaled = is_finite & (most > LEAST_MAX)
    most = tl.where(is_scaled, most, FP8_MAX)
    # For the reference's bits: Triton's own division may be off by two units in the last place.
    step = tl.where(is_scaled, tl.div_rn(FP8_MAX, most), 0.0)
    scale = tl.where(is_scaled, tl.div_rn(most, FP8_MAX), 0.0)
    return step, tl.where(is_finite, scale, float("nan"))


@triton.jit
def to_fp8(values, step):
    """Quantize float32 numbers; a step of 0 yields zeros, also for infinity and NaN."""
    return (tl.where(step == 0.0, 0.0, values) * step).to(tl.float8e4nv)


def empty_fp8_rows(num_rows: int, size: int, device: torch.device) -> Fp8Rows:
    """Allocate quantized rows, [num_rows, size] and [num_rows, 1].

    Raises:
        ValueError: the GPU's compute capability is below 8.9.
    """
    values = torch.empty((num_rows, size), dtype=torch.float8_e4m3fn, device=device)
    check_fp8(values)
    return Fp8Rows(values, torch.empty((num_rows, 1), dtype=torch.float32, device=device))
