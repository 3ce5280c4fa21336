"""Triton backend of `add_lora` and `add_lora_tiles`: two launches per product, for all adapters.

The first multiplies every group's rows by its first factors, in pieces of the inner size so that
few rows still use many multiprocessors; the second adds up the pieces, multiplies by the second
factors and adds to the product. Both find an adapter's matrices by their addresses in a table, so
adapters stay where they were loaded, and ranks may differ. Both read on the device how many rows
each adapter has, so a graph may replay them for other rows and adapters: programs without rows, or
beyond an adapter's rank, end at once.

Not measured on a GPU. The tests run it in Triton's interpreter, and compile it.

Source: LoRA, Hu et al. 2021; one launch for all groups of rows: Punica, Chen et al. 2023.
"""

# Triton traces its kernels: no Python annotation would be true of their arguments.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from batchmill.kernels.reference.lora import TILE_ROWS

from .launch import CachedLaunch, check_device, dot_precision, interpreted, next_power_of_2
from .tiles import matmul

if TYPE_CHECKING:
    from batchmill.kernels.reference.lora import LoraRows, LoraTiles

#: Rows of a program; tl.dot takes at least 16.
BLOCK_M = TILE_ROWS
#: Of the inner size, and of the columns of the result.
BLOCK_K, BLOCK_N = 64, 64
#: Pieces of the inner size. A constant, so that no result depends on the other requests of a step.
SPLIT_K = 8
#: Tables of mixes of adapters that are kept: one for each matrix of a model's layers, for a few.
_NUM_TABLES = 4096


@triton.jit
def lora_down_kernel(
    low,  # [SPLIT_K, num_rows, low_stride] float32
    x,  # [tokens, inputs]
    rows,  # [num_rows] int64: those of the first group, of the second one, ...
    starts,  # [groups + 1] int32
    pairs,  # [groups, 3] int64: down [parts * rank, inputs], up, rank
    inputs,
    num_parts,
    num_rows,
    low_stride,
    tiles,  # of the largest group
    SPLIT_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_K: tl.constexpr,
    UPCAST: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Program (g * tiles + t, f * SPLIT_K + s): a tile of rows times some factors, one piece."""
    group = tl.program_id(0) // tiles
    start = tl.load(starts + group)
    first = start + (tl.program_id(0) % tiles) * BLOCK_M
    end = tl.load(starts + group + 1)
    rank = tl.load(pairs + group * 3 + 2).to(tl.int32)
    piece = tl.program_id(1) % SPLIT_K
    first_factor = (tl.program_id(1) // SPLIT_K) * BLOCK_F
    factors = first_factor + tl.arange(0, BLOCK_F)
    is_factor = factors < rank * num_parts
    if (first < end) & (first_factor < rank * num_parts):
        down = tl.load(pairs + group * 3).to(tl.pointer_type(x.dtype.element_ty))
        down = tl.multiple_of(down, 16)
        places = first + tl.arange(0, BLOCK_M)
        is_row = places < end
        row = tl.load(rows + places, is_row, 0)
        piece_size = tl.cdiv(tl.cdiv(inputs, SPLIT_K), BLOCK_K) * BLOCK_K
        piece_end = tl.minimum((piece + 1) * piece_size, inputs)
        acc = tl.zeros((BLOCK_M, BLOCK_F), tl.float32)
        for k in range(piece * piece_size, piece_end, BLOCK_K):
            columns = k + tl.arange(0, BLOCK_K)
            is_column = columns < piece_end
            left = tl.load(
                x + row[:, None] * inputs + columns[None, :],
                is_row[:, None] & is_column[None, :], 0.0,
            )  # fmt: skip
            right = tl.load(
                down + factors.to(tl.int64)[None, :] * inputs + columns[:, None],
                is_factor[None, :] & is_column[:, None], 0.0,
            )  # fmt: skip
            acc = matmul(left, right, acc, UPCAST, PRECISION)
        offsets = (piece.to(tl.int64) * num_rows + places)[:, None] * low_stride + factors[None, :]
        tl.store(low + offsets, acc, is_row[:, None] & is_factor[None, :])


@triton.jit
def lora_up_kernel(
    out,  # [tokens, total_width]
    low,  # [SPLIT_K, num_rows, low_stride] float32
    rows,
    starts,
    pairs,  # [groups, 3] int64: down, up [rank, total_width], rank
    blocks,  # [column blocks, 3] int32: part, first column, end of the part
    total_width,
    num_rows,
    low_stride,
    tiles,
    SPLIT_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
    NARROW: tl.constexpr,  # whether the first product is rounded to the dtype of the factors
    UPCAST: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Program (g * tiles + t, b): a tile of rows and a block of columns of one part."""
    group = tl.program_id(0) // tiles
    first = tl.load(starts + group) + (tl.program_id(0) % tiles) * BLOCK_M
    end = tl.load(starts + group + 1)
    rank = tl.load(pairs + group * 3 + 2).to(tl.int32)
    if (first < end) & (rank > 0):
        up = tl.load(pairs + group * 3 + 1).to(tl.pointer_type(out.dtype.element_ty))
        up = tl.multiple_of(up, 16)
        block = blocks + tl.program_id(1) * 3
        part = tl.load(block)
        columns = tl.load(block + 1) + tl.arange(0, BLOCK_N)
        is_column = columns < tl.load(block + 2)
        factors = tl.arange(0, BLOCK_R)
        is_factor = factors < rank
        places = first + tl.arange(0, BLOCK_M)
        is_row = places < end
        left = tl.zeros((BLOCK_M, BLOCK_R), tl.float32)
        is_left = is_row[:, None] & is_factor[None, :]
        for piece in range(SPLIT_K):
            offsets = (piece * num_rows + places).to(tl.int64)[:, None] * low_stride
            offsets += (part * rank + factors)[None, :]
            left += tl.load(low + offsets, is_left, 0.0)
        right = tl.load(
            up + factors.to(tl.int64)[:, None] * total_width + columns[None, :],
            is_factor[:, None] & is_column[None, :], 0.0,
        )  # fmt: skip
        acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        if NARROW:
            acc = matmul(left.to(right.dtype), right, acc, UPCAST, PRECISION)
        else:
            acc = matmul(left, right, acc, UPCAST, PRECISION)
        row = tl.load(rows + places, is_row, 0)
        to = out + row[:, None] * total_width + columns[None, :]
        mask = is_row[:, None] & is_column[None, :]
        total = tl.load(to, mask, 0.0).to(tl.float32) + acc
        tl.store(to, total.to(out.dtype.element_ty), mask)


def add_lora_triton(
    out: Tensor, x: Tensor, groups: Sequence[LoraRows], widths: Sequence[int]
) -> None:
    """Compute `add_lora`.

    Nothing is read on the host, and nothing is copied to the device if the step before had the same
    adapters with as many rows each.
    """
    check_device("add_lora", lora_down_kernel, x)
    sizes = tuple(len(rows) for rows, _ in groups)
    if not sum(sizes):
        return
    table = _Table(
        rows=torch.cat([each for each, _ in groups]),
        starts=_starts(sizes, x.device),
        pairs=_table_of_pairs(
            tuple((down.data_ptr(), up.data_ptr(), len(up)) for _, (down, up) in groups), x.device
        ),
        max_rank=max(len(pair.up) for _, pair in groups),
        num_tiles=-(-max(sizes) // BLOCK_M),
    )
    _add(out, x, table, widths)


def add_lora_tiles_triton(out: Tensor, x: Tensor, tiles: LoraTiles, widths: Sequence[int]) -> None:
    """Compute `add_lora_tiles`; its launches depend on the shapes only, so a graph records them."""
    check_device("add_lora_tiles", lora_down_kernel, x)
    if len(x):
        _add(out, x, _Table(*tiles, num_tiles=1), widths)


class _Table(NamedTuple):
    """The rows of each group, its matrices, and sizes that the launches depend on."""

    rows: Tensor
    starts: Tensor
    pairs: Tensor
    max_rank: int
    num_tiles: int  # of the largest group


def _add(out: Tensor, x: Tensor, table: _Table, widths: Sequence[int]) -> None:
    rows, starts, pairs, max_rank, tiles = table
    num_rows, num_groups, inputs = len(rows), len(pairs), x.shape[1]
    blocks = _column_blocks(tuple(widths), x.device)
    low_stride = max_rank * len(widths)
    low = torch.empty((SPLIT_K, num_rows, low_stride), dtype=torch.float32, device=x.device)
    block_f = max(16, min(64, next_power_of_2(low_stride)))
    shared = {
        "UPCAST": interpreted(lora_down_kernel) and x.dtype == torch.bfloat16,
        "PRECISION": dot_precision(x.dtype),
        "num_warps": 4,
    }
    _launch_down(
        (tiles * num_groups, -(-low_stride // block_f) * SPLIT_K),
        (low, x, rows, starts, pairs), (inputs, len(widths), num_rows, low_stride, tiles),
        SPLIT_K=SPLIT_K, BLOCK_M=BLOCK_M, BLOCK_F=block_f, BLOCK_K=BLOCK_K, **shared,
    )  # fmt: skip
    _launch_up(
        (tiles * num_groups, len(blocks)),
        (out, low, rows, starts, pairs, blocks), (out.shape[1], num_rows, low_stride, tiles),
        SPLIT_K=SPLIT_K, BLOCK_M=BLOCK_M, BLOCK_N=BLOCK_N,
        BLOCK_R=max(16, next_power_of_2(max_rank)), NARROW=x.dtype != torch.float32, **shared,
    )  # fmt: skip


@lru_cache(_NUM_TABLES)
def _table_of_pairs(pairs: tuple[tuple[int, int, int], ...], device: torch.device) -> Tensor:
    """Return addresses and ranks on the device.

    The key is the addresses themselves: a table is right for whatever lies there now.
    """
    return torch.tensor(pairs, dtype=torch.int64, device=device)


@lru_cache(_NUM_TABLES)
def _starts(sizes: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor([0, *accumulate(sizes)], dtype=torch.int32, device=device)


@cache  # graphs keep the addresses of these; there is one for each shape of a model's matrices
def _column_blocks(widths: tuple[int, ...], device: torch.device) -> Tensor:
    """Return the blocks of columns of a product: no block has columns of two parts."""
    blocks, start = [], 0
    for part, width in enumerate(widths):
        end = start + width
        blocks += [(part, column, end) for column in range(start, end, BLOCK_N)]
        start = end
    return torch.tensor(blocks, dtype=torch.int32, device=device)


_launch_down = CachedLaunch(lora_down_kernel)
_launch_up = CachedLaunch(lora_up_kernel)
