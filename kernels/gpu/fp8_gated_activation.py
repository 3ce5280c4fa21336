"""Triton backend of `gated_activation_fp8`: one program computes and quantizes one row."""

# Triton traces its kernels: no Python annotation would be true of their arguments.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from batchmill.kernels.reference.fp8_rows import Fp8Rows

from .fp8_rows import MAX_ROW_BLOCK, empty_fp8_rows, largest_magnitude, step_and_scale, to_fp8
from .gated_activation import activate_and_multiply
from .launch import CachedLaunch, check_device, next_power_of_2
from .rms_norm import norm_warps


@triton.jit
def activated(gate_row, columns, SIZE: tl.constexpr, IS_GELU: tl.constexpr):
    """Return numbers of a row as `gated_activation_kernel` stores them, in float32."""
    mask = columns < SIZE
    gate = tl.load(gate_row + columns, mask, 0.0).to(tl.float32)
    up = tl.load(gate_row + SIZE + columns, mask, 0.0).to(tl.float32)
    product = activate_and_multiply(gate, up, IS_GELU)
    return product.to(gate_row.dtype.element_ty).to(tl.float32)


@triton.jit
def gated_activation_fp8_kernel(
    out,  # [num_rows, SIZE]
    scales,  # [num_rows]
    gate_up,  # [num_rows, 2 * SIZE], contiguous
    SIZE: tl.constexpr,
    IS_GELU: tl.constexpr,  # else silu
    BLOCK: tl.constexpr,
):
    """Program r: row r; it stays in registers if it fits into BLOCK."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    source, target = gate_up + row * (2 * SIZE), out + row * SIZE
    if SIZE <= BLOCK:
        values = activated(source, columns, SIZE, IS_GELU)
        step, scale = step_and_scale(largest_magnitude(values, 0))
        tl.store(target + columns, to_fp8(values, step), columns < SIZE)
    else:
        most = 0.0
        for start in range(0, SIZE, BLOCK):
            values = activated(source, start + columns, SIZE, IS_GELU)
            most = tl.maximum(most, largest_magnitude(values, 0))
        step, scale = step_and_scale(most)
        for start in range(0, SIZE, BLOCK):
            values = activated(source, start + columns, SIZE, IS_GELU)
            tl.store(target + start + columns, to_fp8(values, step), start + columns < SIZE)
    tl.store(scales + row, scale)


def gated_activation_fp8_triton(gate_up: Tensor, *, is_gelu: bool) -> Fp8Rows:
    """Compute `gated_activation_fp8`.

    Raises:
        ValueError: the GPU's compute capability is below 8.9.
    """
    check_device("gated_activation_fp8", gated_activation_fp8_kernel, gate_up)
    num_rows, size = gate_up.shape[0], gate_up.shape[1] // 2
    rows = empty_fp8_rows(num_rows, size, gate_up.device)
    if num_rows:
        block = min(MAX_ROW_BLOCK, next_power_of_2(size))
        _launch_gated(
            (num_rows,), (*rows, gate_up.contiguous()), SIZE=size, IS_GELU=is_gelu, BLOCK=block,
            num_warps=norm_warps(block), enable_fp_fusion=True,
        )  # fmt: skip
    return rows


_launch_gated = CachedLaunch(gated_activation_fp8_kernel)
