"""Triton face of `quantize_fp8`: a program quantizes one row."""

# Kernels are traced by Triton, not typed Python: no annotation would be true of their arguments.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .triton_launch import check_device, check_fp8
from .triton_rms_norm import norm_warps

#: Numbers that a program holds in registers; longer rows are read twice.
_MAX_BLOCK = 16384
#: As in `fp8_quantize`.
FP8_MAX = tl.constexpr(448.0)
LEAST_MAX = tl.constexpr(1e-30)


@triton.jit
def largest_magnitude(values):
    """Largest of float32 numbers without their signs; infinity where one is not finite."""
    magnitudes = tl.abs(values)
    # NaN fails the comparison; a maximum alone would pass over it.
    return tl.max(tl.where(magnitudes < float("inf"), magnitudes, float("inf")), 0)


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


@triton.jit
def quantize_fp8_kernel(
    out,  # [num_rows, SIZE]
    scales,  # [num_rows]
    x,  # [num_rows, SIZE], rows row_stride apart
    row_stride,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Program r: row r, from registers where it fits into BLOCK."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    source, target = x + row * row_stride, out + row * SIZE
    if SIZE <= BLOCK:
        mask = columns < SIZE
        values = tl.load(source + columns, mask, 0.0).to(tl.float32)
        step, scale = step_and_scale(largest_magnitude(values))
        tl.store(target + columns, to_fp8(values, step), mask)
    else:
        most = 0.0
        for start in range(0, SIZE, BLOCK):
            mask = start + columns < SIZE
            values = tl.load(source + start + columns, mask, 0.0).to(tl.float32)
            most = tl.maximum(most, largest_magnitude(values))
        step, scale = step_and_scale(most)
        for start in range(0, SIZE, BLOCK):
            mask = start + columns < SIZE
            values = tl.load(source + start + columns, mask, 0.0).to(tl.float32)
            tl.store(target + start + columns, to_fp8(values, step), mask)
    tl.store(scales + row, scale)


def quantize_fp8_triton(x: Tensor) -> tuple[Tensor, Tensor]:
    """Same as `batchmill.kernels.fp8_quantize.quantize_fp8`.

    Raises:
        ValueError: a GPU before compute capability 8.9.
    """
    check_device("quantize_fp8", quantize_fp8_kernel, x)
    num_rows, size = x.shape
    out = torch.empty((num_rows, size), dtype=torch.float8_e4m3fn, device=x.device)
    scales = torch.empty((num_rows, 1), dtype=torch.float32, device=x.device)
    check_fp8(out)
    if num_rows:
        block = min(_MAX_BLOCK, triton.next_power_of_2(size))
        quantize_fp8_kernel[(num_rows,)](
            out, scales, x, x.stride(0), SIZE=size, BLOCK=block, num_warps=norm_warps(block)
        )
    return out, scales
