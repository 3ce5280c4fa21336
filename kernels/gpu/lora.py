"""Triton backend of `add_lora`: two launches per product, however many adapters a step has.

The first multiplies every group's rows by its first factors, in pieces of the inner size so that
few rows still use many multiprocessors; the second adds up the pieces, multiplies by the second
factors and adds to the product. Both find an adapter's matrices by their addresses in a table, so
adapters stay where they were loaded, and ranks may differ.

Not measured on a GPU. The tests run it in Triton's interpreter, and compile it.

Source: LoRA, Hu et al. 2021; one launch for all groups of rows: Punica, Chen et al. 2023.
"""

# Triton traces its kernels: no Python annotation would be true of their arguments.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import CachedLaunch, check_device, dot_precision, interpreted, next_power_of_2
from .tiles import matmul

if TYPE_CHECKING:
    from batchmill.kernels.reference.lora import LoraRows

#: Rows of a program; tl.dot takes at least 16.
BLOCK_M = 16
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
    factors = (tl.program_id(1) // SPLIT_K) * BLOCK_F + tl.arange(0, BLOCK_F)
    is_factor = factors < rank * num_parts
    if first < end:
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
    if first < end:
        rank = tl.load(pairs + group * 3 + 2).to(tl.int32)
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
    num_rows, inputs = sum(sizes), x.shape[1]
    if not num_rows:
        return
    ranks = [len(pair.up) for _, pair in groups]
    rows = torch.cat([each for each, _ in groups])
    pairs = _table_of_pairs(
        tuple((down.data_ptr(), up.data_ptr(), len(up)) for _, (down, up) in groups), x.device
    )
    starts, blocks = _starts(sizes, x.device), _column_blocks(tuple(widths), x.device)
    low_stride = max(ranks) * len(widths)
    low = torch.empty((SPLIT_K, num_rows, low_stride), dtype=torch.float32, device=x.device)
    tiles = -(-max(sizes) // BLOCK_M)
    block_f = max(16, min(64, next_power_of_2(low_stride)))
    shared = {
        "UPCAST": interpreted(lora_down_kernel) and x.dtype == torch.bfloat16,
        "PRECISION": dot_precision(x.dtype),
        "num_warps": 4,
    }
    _launch_down(
        (tiles * len(groups), -(-low_stride // block_f) * SPLIT_K),
        (low, x, rows, starts, pairs), (inputs, len(widths), num_rows, low_stride, tiles),
        SPLIT_K=SPLIT_K, BLOCK_M=BLOCK_M, BLOCK_F=block_f, BLOCK_K=BLOCK_K, **shared,
    )  # fmt: skip
    _launch_up(
        (tiles * len(groups), len(blocks)),
        (out, low, rows, starts, pairs, blocks), (out.shape[1], num_rows, low_stride, tiles),
        SPLIT_K=SPLIT_K, BLOCK_M=BLOCK_M, BLOCK_N=BLOCK_N,
        BLOCK_R=max(16, next_power_of_2(max(ranks))), NARROW=x.dtype != torch.float32, **shared,
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


@lru_cache(_NUM_TABLES)
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
