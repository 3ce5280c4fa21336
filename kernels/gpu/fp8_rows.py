"""What Triton kernels that quantize a row to eight-bit floats have in common."""

# Kernels are traced by Triton, not typed Python: no annotation would be true of their arguments.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls

from __future__ import annotations

import torch
import triton
import triton.language as tl

from batchmill.kernels.reference import fp8_rows
from batchmill.kernels.reference.fp8_rows import Fp8Rows

from .launch import check_fp8

#: Numbers that a program holds in registers; longer rows are computed twice.
MAX_ROW_BLOCK = 16384
FP8_MAX = tl.constexpr(fp8_rows.FP8_MAX)
LEAST_MAX = tl.constexpr(fp8_rows.LEAST_MAX)


@triton.jit
def largest_magnitude(values, AXIS: tl.constexpr):
    """Largest of float32 numbers without their signs; infinity where one is not finite."""
    magnitudes = tl.abs(values)
    # NaN fails the comparison; a maximum alone would pass over it.
    return tl.max(tl.where(magnitudes < float("inf"), magnitudes, float("inf")), AXIS)


@triton.jit
def step_and_scale(most):
    """What a row is multiplied by to be quantized, and what one unit of it then stands for.

    Both are 0 for a row of zeros, and 0 and NaN for one that is not finite.
    """
    is_finite = most < float("inf")
    counts = is_finite & (most > LEAST_MAX)
    most = tl.where(counts, most, FP8_MAX)
    # The reference's bits: Triton's own division may be off by two of the last.
    step = tl.where(counts, tl.div_rn(FP8_MAX, most), 0.0)
    scale = tl.where(counts, tl.div_rn(most, FP8_MAX), 0.0)
    return step, tl.where(is_finite, scale, float("nan"))


@triton.jit
def to_fp8(values, step):
    """Quantize float32 numbers; a step of 0 gives zeros for infinity and NaN as well."""
    return (tl.where(step == 0.0, 0.0, values) * step).to(tl.float8e4nv)


def empty_fp8_rows(num_rows: int, size: int, device: torch.device) -> Fp8Rows:
    """Room for quantized rows, [num_rows, size] and [num_rows, 1].

    Raises:
        ValueError: a GPU before compute capability 8.9.
    """
    values = torch.empty((num_rows, size), dtype=torch.float8_e4m3fn, device=device)
    check_fp8(values)
    return Fp8Rows(values, torch.empty((num_rows, 1), dtype=torch.float32, device=device))
