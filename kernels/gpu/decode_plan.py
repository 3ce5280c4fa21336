"""Plan decode attention on the GPU: how many cache tiles each sequence has to read.

The plan depends on device tensors alone, so it can be part of a CUDA graph and the host reads
nothing. It is the same for all layers of a step: make it once and pass it to every layer.
"""

# Triton traces its kernels: no Python annotation would be true of their arguments.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

_SEQUENCES_PER_PASS = 1024


@dataclass(frozen=True, slots=True)
class DecodePlan:
    """The sequences that decode, and how many tiles of the cache they read.

    A sequence decodes if it has exactly one query token. Other sequences have no tiles here, nor do
    padding rows, whose length is 0.
    """

    #: int32 [1]: number of decoding sequences.
    num_active: Tensor
    #: int32 [num_seqs]: their indices; entries from `num_active` on are undefined.
    active_seqs: Tensor
    #: int32 [num_seqs + 1]: running count of tiles up to each of them, from 0.
    cu_tiles: Tensor
    #: Cached tokens per tile.
    tile_tokens: int
    #: Tokens a query sees, its own included; 0 is all of them.
    sliding_window: int
    #: The caller knows that every sequence has exactly one query token.
    only_decodes: bool


def plan_decode(
    cu_seqlens_q: Tensor,
    seq_lens: Tensor,
    *,
    tile_tokens: int,
    sliding_window: int = 0,
    only_decodes: bool = False,
) -> DecodePlan:
    """Plan one step in a single program, without synchronising with the host.

    Args:
        cu_seqlens_q: [num_seqs + 1] int32.
        seq_lens: [num_seqs] int32, cached tokens after this step's write.
        tile_tokens: Cached tokens per tile.
        sliding_window: Tokens a query sees, its own included; 0 is all of them.
        only_decodes: Stored in the plan for its users.
    """
    num_seqs = seq_lens.shape[0]
    # Each part starts at a multiple of 16 bytes: Triton compiles once more for other pointers.
    room = -(-(num_seqs + 1) // 4) * 4
    buffer = torch.empty(4 + 2 * room, dtype=torch.int32, device=seq_lens.device)
    plan = DecodePlan(
        num_active=buffer[:1],
        active_seqs=buffer[4 : 4 + num_seqs],
        cu_tiles=buffer[4 + room : 4 + room + num_seqs + 1],
        tile_tokens=tile_tokens,
        sliding_window=sliding_window,
        only_decodes=only_decodes,
    )
    plan_decode_kernel[(1,)](
        *(plan.num_active, plan.active_seqs, plan.cu_tiles, cu_seqlens_q, seq_lens, num_seqs),
        WINDOW=sliding_window,
        TILE=tile_tokens,
        PASS=_SEQUENCES_PER_PASS,
        num_warps=4,
        enable_fp_fusion=True,
    )
    return plan


@triton.jit(do_not_specialize=["num_seqs"])
def plan_decode_kernel(
    num_active_out,  # int32 [1]
    active_seqs_out,  # int32 [num_seqs]
    cu_tiles_out,  # int32 [num_seqs + 1]
    cu_seqlens_q,  # int32 [num_seqs + 1]
    seq_lens,  # int32 [num_seqs]
    num_seqs,
    WINDOW: tl.constexpr,
    TILE: tl.constexpr,
    PASS: tl.constexpr,
):
    """Compact the decoding sequences and sum up their tiles, in one program."""
    num_active = 0
    num_tiles = 0
    for start in range(0, num_seqs, PASS):
        seqs = start + tl.arange(0, PASS)
        listed = seqs < num_seqs
        seq_len = tl.load(seq_lens + seqs, listed, 0)
        query_start = tl.load(cu_seqlens_q + seqs, listed, 0)
        query_end = tl.load(cu_seqlens_q + seqs + 1, listed, 0)
        tiles = (seq_len + TILE - 1) // TILE
        if WINDOW > 0:
            tiles -= tl.maximum(seq_len - WINDOW, 0) // TILE
        tiles = tl.where(query_end - query_start == 1, tiles, 0)
        active = tiles > 0
        rank = num_active + tl.cumsum(active.to(tl.int32), 0) - 1
        tl.store(active_seqs_out + rank, seqs, active)
        tl.store(cu_tiles_out + rank + 1, num_tiles + tl.cumsum(tiles, 0), active)
        num_active += tl.sum(active.to(tl.int32), 0)
        num_tiles += tl.sum(tiles, 0)
    tl.store(cu_tiles_out, 0)
    tl.store(num_active_out, num_active)


@triton.jit
def find_sequence(cu_tiles, num_active, tile):
    """Return the index of the active sequence that holds a tile."""
    low = 0  # the last sequence that starts at or before the tile
    high = num_active
    while high - low > 1:
        middle = (low + high) // 2
        if tl.load(cu_tiles + middle) <= tile:
            low = middle
        else:
            high = middle
    return low


@triton.jit
def stretch_of(program, num_programs, total):
    """Return a program's stretch of `total` tiles: its first, and the one after its last.

    Shares differ by one tile at most, and the larger ones go to the first programs, which run on
    different multiprocessors. Equal stretches of ceil(total / num_programs) would leave the last
    programs without work: 54 of 396 for one sequence of 16,384 tokens and 8 KV heads.
    """
    share = total // num_programs
    num_larger = total % num_programs
    first = program * share + tl.minimum(program, num_larger)
    return first, first + share + (program < num_larger).to(tl.int32)


@triton.jit
def holder_of(tile, num_programs, total):
    """Return the program whose stretch holds a tile."""
    share = total // num_programs
    num_larger = total % num_programs
    in_larger = num_larger * (share + 1)
    after = num_larger + (tile - in_larger) // tl.maximum(share, 1)
    return tl.where(tile < in_larger, tile // (share + 1), after)
