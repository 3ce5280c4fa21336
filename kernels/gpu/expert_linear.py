"""Triton backend of `multiply_experts`: each row by the weight of its expert.

    out[r, n] = sum over k of  x[rows[r], k] * weight[e, n, k]  + bias[e, n],    e = expert of row r

A program multiplies some rows of one expert by some columns. Its expert it finds itself, in the
running count of the experts' row tiles: the grid is an upper bound that the host knows without
reading. The weight is on the left and the tile is transposed, so that few rows still fill the
matrix instruction of a warp group. Rows are gathered as they are read. With an activation, a
program has the tiles of gate and of up, and the result of the wide product is never stored.
"""

# Triton traces its kernels: no Python annotation would be true of their arguments.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from batchmill.kernels.every_size import launches_every_size
from batchmill.kernels.reference.expert_linear import Fp8Experts
from batchmill.kernels.reference.fp8_rows import Fp8Rows

from .gated_activation import activate_and_multiply
from .launch import (
    CachedLaunch,
    check_device,
    check_fp8,
    dot_precision,
    interpreted,
    next_power_of_2,
)
from .tiles import matmul


class _Tile(NamedTuple):
    rows: int
    columns: int
    #: Bytes of a row that one step of the loop reads.
    input_bytes: int
    num_warps: int
    num_stages: int


#: By the most rows of an expert, on average, that each is for. Experts differ, so a tile has twice
#: as many; the last serves all others.
_TILES = {
    8: _Tile(16, 64, 128, 4, 4),
    16: _Tile(32, 64, 128, 4, 4),
    32: _Tile(64, 64, 128, 4, 3),
    1 << 62: _Tile(128, 128, 128, 8, 3),
}
#: The same for fp8: 64 rows with four warps keep 96 bytes in memory on sm_100.
_FP8_TILES = {**_TILES, 32: _Tile(64, 128, 128, 8, 3)}
#: The same for float32, whose products take three steps: taller tiles spill.
_FLOAT32_TILES = {1 << 62: _Tile(32, 64, 128, 4, 2)}


@triton.jit
def find_rows(ends, row_tile, NUM_EXPERTS: tl.constexpr, BLOCK_E: tl.constexpr, ROWS: tl.constexpr):
    """Return the expert of a row tile, its first row and the end of its rows.

    Tiles past the last one get a first row that is not below the end.
    """
    experts = tl.arange(0, BLOCK_E)
    listed = experts < NUM_EXPERTS
    own_ends = tl.load(ends + experts, listed, 0)
    starts = tl.load(ends + experts - 1, listed & (experts > 0), 0)
    tiles = tl.where(listed, (own_ends - starts + ROWS - 1) // ROWS, 0)
    through = tl.cumsum(tiles, 0)
    passed = listed & (through <= row_tile)
    expert = tl.minimum(tl.sum(passed.to(tl.int32), 0), NUM_EXPERTS - 1)
    tiles_before = tl.max(tl.where(passed, through, 0), 0)
    rows_before = tl.max(tl.where(passed, own_ends, 0), 0)
    first = rows_before + (row_tile - tiles_before) * ROWS
    return expert, first, tl.load(ends + expert)


@triton.jit(do_not_specialize=["row_stride"])
def expert_linear_kernel(
    out,  # [num_rows, num_columns]
    x,  # [num_tokens, num_inputs], rows row_stride apart
    weight,  # [NUM_EXPERTS, num_columns, num_inputs], twice the columns if IS_GATED
    ends,  # int32 [NUM_EXPERTS]
    rows,  # int64 [num_rows], read if IS_GATHERED
    bias,  # [NUM_EXPERTS, as weight], read if HAS_BIAS
    x_scales,  # float32 [num_tokens], read if IS_SCALED
    scales,  # float32 [NUM_EXPERTS, as weight], read if IS_SCALED
    num_columns,
    num_inputs,
    row_stride,
    NUM_EXPERTS: tl.constexpr,
    BLOCK_E: tl.constexpr,
    IS_GATHERED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    IS_SCALED: tl.constexpr,
    IS_GATED: tl.constexpr,
    IS_GELU: tl.constexpr,
    IS_WHOLE: tl.constexpr,  # the inputs are whole blocks
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
    BLOCK_INPUTS: tl.constexpr,
    UPCAST: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Program (t, c): row tile t, BLOCK_COLUMNS columns; tiles of the same columns adjoin."""
    expert, first, end = find_rows(ends, tl.program_id(0), NUM_EXPERTS, BLOCK_E, BLOCK_ROWS)
    if first < end:
        placed = first + tl.arange(0, BLOCK_ROWS)
        columns = tl.program_id(1) * BLOCK_COLUMNS + tl.arange(0, BLOCK_COLUMNS)
        # Repeated rows and columns instead of masks; they are not stored.
        read_rows = tl.minimum(placed, end - 1).to(tl.int64)
        if IS_GATHERED:
            read_rows = tl.load(rows + read_rows)
        read_columns = tl.minimum(columns, num_columns - 1)
        num_outputs = num_columns * 2 if IS_GATED else num_columns
        read_columns = expert.to(tl.int64) * num_outputs + read_columns
        inputs = tl.arange(0, BLOCK_INPUTS)
        x_tile = x + read_rows[None, :] * row_stride + inputs[:, None]
        gate_tile = weight + read_columns[:, None] * num_inputs + inputs[None, :]
        to_up = num_columns.to(tl.int64) * num_inputs
        gate_sums = tl.zeros([BLOCK_COLUMNS, BLOCK_ROWS], tl.float32)
        up_sums = gate_sums
        for start in range(0, num_inputs, BLOCK_INPUTS):
            if IS_WHOLE:
                x_block = tl.load(x_tile + start)
                gate_block = tl.load(gate_tile + start)
            else:
                held = start + inputs < num_inputs
                x_block = tl.load(x_tile + start, held[:, None], 0.0)
                gate_block = tl.load(gate_tile + start, held[None, :], 0.0)
            gate_sums = matmul(gate_block, x_block, gate_sums, UPCAST, PRECISION)
            if IS_GATED:
                if IS_WHOLE:
                    up_block = tl.load(gate_tile + start + to_up)
                else:
                    up_block = tl.load(gate_tile + start + to_up, held[None, :], 0.0)
                up_sums = matmul(up_block, x_block, up_sums, UPCAST, PRECISION)
        dtype: tl.constexpr = out.dtype.element_ty
        if IS_SCALED:
            x_scale = tl.load(x_scales + read_rows)[None, :]
            gate_sums = gate_sums * x_scale * tl.load(scales + read_columns)[:, None]
            if IS_GATED:
                up_scale = tl.load(scales + read_columns + num_columns)
                up_sums = up_sums * x_scale * up_scale[:, None]
        if HAS_BIAS:
            gate_sums += tl.load(bias + read_columns).to(tl.float32)[:, None]
            if IS_GATED:
                up_sums += tl.load(bias + read_columns + num_columns).to(tl.float32)[:, None]
        if IS_GATED:  # rounded as if the product had been stored
            gate = gate_sums.to(dtype).to(tl.float32)
            gate_sums = activate_and_multiply(gate, up_sums.to(dtype).to(tl.float32), IS_GELU)
        place = out + placed.to(tl.int64)[None, :] * num_columns + columns[:, None]
        stored = (placed < end)[None, :] & (columns < num_columns)[:, None]
        tl.store(place, gate_sums.to(dtype), stored)


def multiply_experts_triton(
    x: Tensor | Fp8Rows,
    weight: Tensor | Fp8Experts,
    ends: Tensor,
    out_dtype: torch.dtype,
    rows: Tensor | None,
    bias: Tensor | None,
    activation: str | None,
) -> Tensor:
    """Compute `multiply_experts`."""
    values, scales = weight if isinstance(weight, Fp8Experts) else (weight, None)
    inputs, x_scales = x if isinstance(x, Fp8Rows) else (x, None)
    check_device("multiply_experts", expert_linear_kernel, values)
    check_fp8(values)
    num_experts, num_outputs, num_inputs = values.shape
    num_rows = len(inputs if rows is None else rows)
    num_columns = num_outputs // 2 if activation else num_outputs
    out = torch.empty((num_rows, num_columns), dtype=out_dtype, device=values.device)
    if not num_rows:
        return out
    for tile in _tiles_for(num_rows, num_experts, values.dtype):
        # A program has the columns of gate and up.
        columns = tile.columns // 2 if activation and tile.columns > 64 else tile.columns
        block = tile.input_bytes // values.element_size()
        most_tiles = min(num_rows, num_rows // tile.rows + num_experts)
        _launch_product(
            (most_tiles, -(-num_columns // columns)),
            (out, inputs, values, ends, ends if rows is None else rows,
             out if bias is None else bias, ends if x_scales is None else x_scales,
             ends if scales is None else scales),
            (num_columns, num_inputs, inputs.stride(0)),
            NUM_EXPERTS=num_experts, BLOCK_E=next_power_of_2(num_experts),
            IS_GATHERED=rows is not None, HAS_BIAS=bias is not None,
            IS_SCALED=scales is not None, IS_GATED=activation is not None,
            IS_GELU=activation == "gelu_tanh", IS_WHOLE=num_inputs % block == 0,
            BLOCK_ROWS=tile.rows, BLOCK_COLUMNS=columns, BLOCK_INPUTS=block,
            UPCAST=interpreted(expert_linear_kernel), PRECISION=dot_precision(values.dtype),
            num_warps=tile.num_warps, num_stages=tile.num_stages,
        )  # fmt: skip
    return out


def _tiles_for(num_rows: int, num_experts: int, dtype: torch.dtype) -> list[_Tile]:
    """Return the tile for so many rows; all of them while kernels are warmed up."""
    table = {torch.float32: _FLOAT32_TILES, torch.float8_e4m3fn: _FP8_TILES}.get(dtype, _TILES)
    if launches_every_size():
        return list(table.values())
    average = -(-num_rows // num_experts)
    return [next(tile for most, tile in table.items() if average <= most)]


_launch_product = CachedLaunch(expert_linear_kernel)
