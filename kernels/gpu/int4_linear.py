"""Triton backend of `multiply_int4`: 4-bit weights times 16-bit activations.

    out[m, n] = sum over k of  x[m, k] * round((q[n, k] - zero) * scale)  + bias[n]

A program multiplies some columns of the result by some of its rows. It widens the weights in
registers, where the matrix instruction takes its left operand from: so the weight is on the left
and the tile is transposed. Each number is rounded as if the weight had been unpacked. If there are
too few tiles for the GPU, several programs divide a tile's inputs, and a second kernel adds their
sums in a fixed order.
"""

# Triton traces its kernels: no Python annotation would be true of their arguments.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from batchmill.kernels.reference.int4_rows import CHUNK, PackedInt4

from .launch import CachedLaunch, check_device, num_multiprocessors

# Powers of two whose last bit counts 1, by format, and their bits. An integer in the last bits
# makes a float without a conversion, which would be slow.
_BIAS_F32, _BITS_F32 = tl.constexpr(8388608.0), tl.constexpr(0x4B000000)
_BIAS_F16, _BITS_F16 = tl.constexpr(1024.0), tl.constexpr(0x6400)
_BIAS_BF16, _BITS_BF16 = tl.constexpr(128.0), tl.constexpr(0x4300)
#: Columns per program of the kernel that adds sums.
ADD_BLOCK = 1024
#: Chunks of inputs that a program has at least, if several divide them.
_LEAST_CHUNKS = 8
#: Programs per multiprocessor that keep its memory busy.
_PROGRAMS_PER_SM = 2


class _Tile(NamedTuple):
    rows: int
    columns: int
    num_warps: int
    num_stages: int


#: By the most rows that each is for; the last serves all others.
_TILES = {
    16: _Tile(16, 64, 4, 4),
    32: _Tile(32, 64, 4, 4),
    64: _Tile(64, 64, 4, 3),
    1 << 62: _Tile(128, 128, 8, 3),
}


@triton.jit
def _widen(integers, zeros, scales, dtype: tl.constexpr):
    """Return (integers - zeros) * scales, rounded once to `dtype`.

    Differences are exact, because zero points are small whole numbers. If the scales have the
    result's format, so are the operands of the product, of which one instruction computes two.
    """
    if scales.dtype == dtype and dtype == tl.float16:
        floats = (integers.to(tl.uint16) | _BITS_F16).to(tl.float16, bitcast=True)
        result = (floats - (zeros + _BIAS_F16).to(dtype)[:, None]) * scales[:, None]
    elif scales.dtype == dtype and dtype == tl.bfloat16:
        floats = (integers.to(tl.uint16) | _BITS_BF16).to(tl.bfloat16, bitcast=True)
        result = (floats - (zeros + _BIAS_BF16).to(dtype)[:, None]) * scales[:, None]
    else:
        floats = (integers.to(tl.int32) | _BITS_F32).to(tl.float32, bitcast=True)
        scales = scales.to(tl.float32)
        result = ((floats - (zeros + _BIAS_F32)[:, None]) * scales[:, None]).to(dtype)
    return result


@triton.jit(do_not_specialize=["num_rows", "num_chunks"])
def int4_linear_kernel(
    out,  # [num_rows, num_columns], or float32 [programs of a tile, num_rows, num_columns]
    x,  # [num_rows, num_inputs], rows row_stride apart
    packed,  # int32 [chunks, num_columns, CHUNK / 8], a byte is inputs i and i + CHUNK / 2
    scales,  # [groups, num_columns]
    zeros,  # [groups, num_columns], or any
    bias,  # [num_columns], or any
    num_rows,
    num_chunks,  # of a program
    num_columns,
    num_inputs,
    row_stride,
    GROUP: tl.constexpr,
    CHUNK: tl.constexpr,
    HAS_ZEROS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    IS_WHOLE: tl.constexpr,  # the inputs are whole chunks
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLUMNS: tl.constexpr,
):
    """Program (t, p): the p-th part of the inputs of tile t; tiles of the same columns adjoin."""
    HALF: tl.constexpr = CHUNK // 2
    row_tiles = tl.cdiv(num_rows, BLOCK_ROWS)
    first_row = tl.program_id(0) % row_tiles * BLOCK_ROWS
    first_column = tl.program_id(0) // row_tiles * BLOCK_COLUMNS
    rows = (first_row + tl.arange(0, BLOCK_ROWS)).to(tl.int64)
    columns = first_column + tl.arange(0, BLOCK_COLUMNS)
    # Repeated rows and columns instead of masks; they are not stored.
    x_rows = x + tl.minimum(rows, num_rows - 1)[None, :] * row_stride
    read_columns = tl.minimum(columns, num_columns - 1)
    halves = tl.arange(0, HALF)
    bytes_of = packed.to(tl.pointer_type(tl.uint8)) + read_columns[:, None] * HALF + halves[None, :]
    chunk_bytes = tl.full([], HALF, tl.int64) * num_columns
    first_chunk = tl.program_id(1) * num_chunks
    last_chunk = tl.minimum(first_chunk + num_chunks, tl.cdiv(num_inputs, CHUNK))
    zero_low = tl.full([BLOCK_COLUMNS], 8.0, tl.float32)
    zero_high = zero_low
    sums = tl.zeros([BLOCK_COLUMNS, BLOCK_ROWS], tl.float32)
    for chunk in range(first_chunk, last_chunk):
        both = tl.load(bytes_of + chunk * chunk_bytes)
        inputs = chunk * CHUNK + halves
        if IS_WHOLE:
            x_low = tl.load(x_rows + inputs[:, None])
            x_high = tl.load(x_rows + (inputs + HALF)[:, None])
        else:
            x_low = tl.load(x_rows + inputs[:, None], (inputs < num_inputs)[:, None], 0.0)
            inputs += HALF
            x_high = tl.load(x_rows + inputs[:, None], (inputs < num_inputs)[:, None], 0.0)
        low = chunk * CHUNK // GROUP * num_columns + read_columns
        high = (chunk * CHUNK + HALF) // GROUP * num_columns + read_columns
        scale_low = tl.load(scales + low)
        scale_high = scale_low
        if GROUP % CHUNK != 0:  # a group may end between the halves
            scale_high = tl.load(scales + high)
        if HAS_ZEROS:
            zero_low = tl.load(zeros + low).to(tl.float32)
            zero_high = zero_low
            if GROUP % CHUNK != 0:
                zero_high = tl.load(zeros + high).to(tl.float32)
        dtype: tl.constexpr = x.dtype.element_ty
        sums = tl.dot(_widen(both & 15, zero_low, scale_low, dtype), x_low, sums)
        sums = tl.dot(_widen(both >> 4, zero_high, scale_high, dtype), x_high, sums)
    if HAS_BIAS:
        sums += tl.load(bias + read_columns).to(tl.float32)[:, None]
    place = out + tl.program_id(1).to(tl.int64) * num_rows * num_columns
    place = place + rows[None, :] * num_columns + columns[:, None]
    held = (rows < num_rows)[None, :] & (columns < num_columns)[:, None]
    tl.store(place, sums.to(out.dtype.element_ty), held)


@triton.jit(do_not_specialize=["num_parts", "num_rows"])
def add_int4_parts_kernel(
    out,  # [num_rows, num_columns]
    parts,  # float32 [num_parts, num_rows, num_columns]
    bias,  # [num_columns], or any
    num_parts,
    num_rows,
    num_columns,
    HAS_BIAS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Program (r, b): BLOCK columns of row r, added in their order and rounded once."""
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < num_columns
    total = tl.zeros([BLOCK], tl.float32)
    part = parts + row * num_columns + columns
    part_size = tl.full([], 1, tl.int64) * num_rows * num_columns
    for _ in range(num_parts):
        total += tl.load(part, mask, 0.0)
        part += part_size
    if HAS_BIAS:
        total += tl.load(bias + columns, mask, 0.0).to(tl.float32)
    tl.store(out + row * num_columns + columns, total.to(out.dtype.element_ty), mask)


def multiply_int4_triton(x: Tensor, weight: PackedInt4, bias: Tensor | None) -> Tensor:
    """Compute `multiply_int4`."""
    check_device("multiply_int4", int4_linear_kernel, x)
    num_rows, (num_columns, num_inputs) = len(x), weight.shape
    if not num_rows:
        return x.new_empty((0, num_columns))
    tile = next(tile for most, tile in _TILES.items() if num_rows <= most)
    tiles = -(-num_rows // tile.rows) * -(-num_columns // tile.columns)
    own = _chunks_of_program(-(-num_inputs // CHUNK), tiles, num_multiprocessors(x.device))
    return _multiply(x, weight, bias, tile, own)


def warm_up_int4_triton(x: Tensor, weight: PackedInt4, bias: Tensor | None) -> None:
    """Launch every kernel that any number of rows of x launches, once.

    Args:
        x: [1, in], in the activations' dtype, on the weight's device.
        weight: A weight.
        bias: Its bias.
    """
    num_chunks = -(-weight.num_inputs // CHUNK)
    for tile in _TILES.values():
        for own in {num_chunks, -(-num_chunks // 2)}:
            _multiply(x, weight, bias, tile, own)


def _multiply(
    x: Tensor, weight: PackedInt4, bias: Tensor | None, tile: _Tile, own_chunks: int
) -> Tensor:
    """Multiply by programs of one tile, each of which has so many chunks of inputs."""
    num_rows, (num_columns, num_inputs) = len(x), weight.shape
    tiles = -(-num_rows // tile.rows) * -(-num_columns // tile.columns)
    num_parts = -(-num_inputs // (CHUNK * own_chunks))
    is_divided = num_parts > 1
    target = out = x.new_empty((num_rows, num_columns))
    if is_divided:
        target = x.new_empty((num_parts, num_rows, num_columns), dtype=torch.float32)
    some_bias = x if bias is None else bias
    some_zeros = weight.scales if weight.zeros is None else weight.zeros
    _launch_product(
        (tiles, num_parts), (target, x, weight.packed, weight.scales, some_zeros, some_bias),
        (num_rows, own_chunks, num_columns, num_inputs, x.stride(0)),
        GROUP=weight.group_size, CHUNK=CHUNK, HAS_ZEROS=weight.zeros is not None,
        HAS_BIAS=bias is not None and not is_divided, IS_WHOLE=num_inputs % CHUNK == 0,
        BLOCK_ROWS=tile.rows, BLOCK_COLUMNS=tile.columns, num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )  # fmt: skip
    if is_divided:
        _launch_sum(
            (num_rows, -(-num_columns // ADD_BLOCK)), (out, target, some_bias),
            (num_parts, num_rows, num_columns),
            HAS_BIAS=bias is not None, BLOCK=ADD_BLOCK, num_warps=4,
        )  # fmt: skip
    return out


def _chunks_of_program(num_chunks: int, tiles: int, num_multiprocessors: int) -> int:
    """Return how many chunks of inputs a program multiplies, so that the GPU is busy."""
    wanted = max(1, _PROGRAMS_PER_SM * num_multiprocessors // tiles)
    least = min(num_chunks, _LEAST_CHUNKS)
    return max(-(-num_chunks // wanted), least)


_launch_product = CachedLaunch(int4_linear_kernel)
_launch_sum = CachedLaunch(add_int4_parts_kernel)
