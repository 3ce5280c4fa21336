"""Triton backends of `rms_norm`, `add_rms_norm` and `rms_norm_fp8`.

Each program normalises one or a few whole rows.
"""

# Triton traces its kernels: no Python annotation would be true of their arguments.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from batchmill.kernels.reference.fp8_rows import Fp8Rows

from .fp8_rows import empty_fp8_rows, largest_magnitude, step_and_scale, to_fp8
from .launch import CachedLaunch, check_device, next_power_of_2

#: Fewest elements per program: short rows (the q and k norms of one head) are grouped.
_MIN_PROGRAM_ELEMENTS = 1024
_ELEMENTS_PER_WARP = 512
_MAX_WARPS = 16


@triton.jit(do_not_specialize=["num_rows"])
def rms_norm_kernel(
    out,  # [num_rows, SIZE]
    scales,  # [num_rows], written if QUANTIZE
    x,  # row r at (r // ROWS_PER_TOKEN) * token_stride + (r % ROWS_PER_TOKEN) * row_stride
    residual,  # [num_rows, SIZE], added and overwritten if ADD
    weight,  # [SIZE]
    token_stride,
    row_stride,
    num_rows,
    eps,
    ADD: tl.constexpr,
    QUANTIZE: tl.constexpr,
    SIZE: tl.constexpr,
    ROWS_PER_TOKEN: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Normalise ROWS rows in float32; with ADD, normalise the sum, once it is rounded and stored.

    With QUANTIZE, the rounded result is stored as eight-bit floats with one scale per row.
    """
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, BLOCK)[None, :]
    mask = (rows < num_rows)[:, None] & (columns < SIZE)
    token = (rows // ROWS_PER_TOKEN).to(tl.int64)
    starts = token * token_stride + (rows % ROWS_PER_TOKEN) * row_stride
    dense = rows.to(tl.int64)[:, None] * SIZE + columns
    values = tl.load(x + starts[:, None] + columns, mask, 0.0)
    if ADD:
        held = tl.load(residual + dense, mask, 0.0)
        values = (values.to(tl.float32) + held.to(tl.float32)).to(x.dtype.element_ty)
        tl.store(residual + dense, values, mask)
    values = values.to(tl.float32)
    scale = tl.rsqrt(tl.sum(values * values, 1) / SIZE + eps)
    weights = tl.load(weight + columns, columns < SIZE, 0.0).to(tl.float32)
    normed = values * scale[:, None] * weights
    if QUANTIZE:
        rounded = normed.to(x.dtype.element_ty).to(tl.float32)
        step, unit = step_and_scale(largest_magnitude(rounded, 1))
        tl.store(out + dense, to_fp8(rounded, step[:, None]), mask)
        tl.store(scales + rows, unit, rows < num_rows)
    else:
        tl.store(out + dense, normed.to(out.dtype.element_ty), mask)


def rms_norm_triton(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Compute `rms_norm`."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _launch(out, None, x, None, weight, eps)
    return out


def add_rms_norm_triton(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Compute `add_rms_norm`."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _launch(out, None, x, residual, weight, eps)
    return out


def rms_norm_fp8_triton(x: Tensor | None, residual: Tensor, weight: Tensor, eps: float) -> Fp8Rows:
    """Compute `rms_norm_fp8`.

    Raises:
        ValueError: the GPU's compute capability is below 8.9.
    """
    num_rows, size = residual.shape
    rows = empty_fp8_rows(num_rows, size, residual.device)
    if x is None:
        _launch(*rows, residual, None, weight, eps)
    else:
        _launch(*rows, x, residual, weight, eps)
    return rows


def _launch(
    out: Tensor,
    scales: Tensor | None,
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor,
    eps: float,
) -> None:
    check_device("rms_norm", rms_norm_kernel, x)
    size = x.shape[-1]
    rows = x if x.dim() in (2, 3) else x.reshape(-1, size)
    rows_per_token = rows.shape[1] if rows.dim() == 3 else 1
    num_rows = rows.shape[0] * rows_per_token
    if num_rows == 0:
        return
    block = next_power_of_2(size)
    rows_per_program = max(1, _MIN_PROGRAM_ELEMENTS // block)
    _launch_norm(
        (-(-num_rows // rows_per_program),),
        (
            out,
            out if scales is None else scales,
            rows,
            x if residual is None else residual,
            weight,
        ),
        (rows.stride(0), rows.stride(1) if rows.dim() == 3 else 0, num_rows, eps),
        ADD=residual is not None,
        QUANTIZE=scales is not None,
        SIZE=size,
        ROWS_PER_TOKEN=rows_per_token,
        ROWS=rows_per_program,
        BLOCK=block,
        num_warps=norm_warps(block * rows_per_program),
        enable_fp_fusion=True,
    )


_launch_norm = CachedLaunch(rms_norm_kernel)


def norm_warps(program_elements: int) -> int:
    """Return the warps of a program that keeps these elements in registers (a power of two)."""
    return min(_MAX_WARPS, max(1, program_elements // _ELEMENTS_PER_WARP))
