"""Triton backend of `quantize_fp8`: one program quantizes one row."""

# Triton traces its kernels: no Python annotation would be true of their arguments.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from batchmill.kernels.reference.fp8_rows import Fp8Rows

from .fp8_rows import MAX_ROW_BLOCK, empty_fp8_rows, largest_magnitude, step_and_scale, to_fp8
from .launch import CachedLaunch, check_device, next_power_of_2
from .rms_norm import norm_warps


@triton.jit
def quantize_fp8_kernel(
    out,  # [num_rows, SIZE]
    scales,  # [num_rows]
    x,  # [num_rows, SIZE], rows row_stride apart
    row_stride,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Program r: row r; it stays in registers if it fits into BLOCK."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    source, target = x + row * row_stride, out + row * SIZE
    if SIZE <= BLOCK:
        mask = columns < SIZE
        values = tl.load(source + columns, mask, 0.0).to(tl.float32)
        step, scale = step_and_scale(largest_magnitude(values, 0))
        tl.store(target + columns, to_fp8(values, step), mask)
    else:
        most = 0.0
        for start in range(0, SIZE, BLOCK):
            mask = start + columns < SIZE
            values = tl.load(source + start + columns, mask, 0.0).to(tl.float32)
            most = tl.maximum(most, largest_magnitude(values, 0))
        step, scale = step_and_scale(most)
        for start in range(0, SIZE, BLOCK):
            mask = start + columns < SIZE
            values = tl.load(source + start + columns, mask, 0.0).to(tl.float32)
            tl.store(target + start + columns, to_fp8(values, step), mask)
    tl.store(scales + row, scale)


def quantize_fp8_triton(x: Tensor) -> Fp8Rows:
    """Compute `quantize_fp8`.

    Raises:
        ValueError: the GPU's compute capability is below 8.9.
    """
    check_device("quantize_fp8", quantize_fp8_kernel, x)
    num_rows, size = x.shape
    rows = empty_fp8_rows(num_rows, size, x.device)
    if num_rows:
        block = min(MAX_ROW_BLOCK, next_power_of_2(size))
        _launch_quantize(
            (num_rows,), (*rows, x), (x.stride(0),),
            SIZE=size, BLOCK=block, num_warps=norm_warps(block),
        )  # fmt: skip
    return rows


_launch_quantize = CachedLaunch(quantize_fp8_kernel)
