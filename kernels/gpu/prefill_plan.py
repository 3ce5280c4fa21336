"""Plan prefill attention whose keys are divided: how many cache tiles each query tile reads.

Like `decode_plan.py`, the plan depends on device tensors alone: the host reads nothing, and all
layers of a step with the same window share it.
"""

# Triton traces its kernels: no Python annotation would be true of their arguments.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

_SLOTS_PER_PASS = 512


@dataclass(frozen=True, slots=True)
class PrefillPlan:
    """The query tiles of a step, and how many tiles of the cache each of them reads.

    Sequences with one query token have no query tile here: decode serves those.
    """

    #: int32 [1]: number of query tiles.
    num_active: Tensor
    #: int32 [most query tiles]: the sequence of each; entries from `num_active` on are undefined.
    tile_seqs: Tensor
    #: int32 [most query tiles]: the first query of each, counted in its sequence's queries.
    first_queries: Tensor
    #: int32 [most query tiles + 1]: running count of cache tiles up to each of them, from 0.
    cu_tiles: Tensor


def plan_prefill(
    cu_seqlens_q: Tensor,
    seq_lens: Tensor,
    *,
    num_tokens: int,
    queries_per_tile: int,
    tile_tokens: int,
    sliding_window: int = 0,
) -> PrefillPlan:
    """Plan one step in a single program, without synchronising with the host.

    Args:
        cu_seqlens_q: [num_seqs + 1] int32.
        seq_lens: [num_seqs] int32, cached tokens after this step's write.
        num_tokens: Query tokens of the step, or more: the last of `cu_seqlens_q`, padded.
        queries_per_tile: Consecutive queries of one sequence that share a tile.
        tile_tokens: Cached tokens per tile of the cache.
        sliding_window: Tokens a query sees, its own included; 0 is all of them.
    """
    num_seqs = seq_lens.shape[0]
    num_slots = num_tokens // queries_per_tile + num_seqs
    # Each part starts at a multiple of 16 bytes: Triton compiles once more for other pointers.
    room = -(-(num_slots + 1) // 4) * 4
    buffer = torch.empty(4 + 3 * room, dtype=torch.int32, device=seq_lens.device)
    plan = PrefillPlan(
        num_active=buffer[:1],
        tile_seqs=buffer[4 : 4 + num_slots],
        first_queries=buffer[4 + room : 4 + room + num_slots],
        cu_tiles=buffer[4 + 2 * room : 4 + 2 * room + num_slots + 1],
    )
    plan_prefill_kernel[(1,)](
        *(plan.num_active, plan.tile_seqs, plan.first_queries, plan.cu_tiles),
        *(cu_seqlens_q, seq_lens, num_slots, num_seqs),
        WINDOW=sliding_window,
        BLOCK_Q=queries_per_tile,
        TILE=tile_tokens,
        PASS=_SLOTS_PER_PASS,
        num_warps=4,
        enable_fp_fusion=True,
    )
    return plan


@triton.jit(do_not_specialize=["num_slots", "num_seqs"])
def plan_prefill_kernel(
    num_active_out,  # int32 [1]
    tile_seqs_out,  # int32 [num_slots]
    first_queries_out,  # int32 [num_slots]
    cu_tiles_out,  # int32 [num_slots + 1]
    cu_seqlens_q,  # int32 [num_seqs + 1]
    seq_lens,  # int32 [num_seqs]
    num_slots,
    num_seqs,
    WINDOW: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    TILE: tl.constexpr,
    PASS: tl.constexpr,
):
    """Compact the query tiles and sum up the cache tiles that they read, in one program.

    Slots are the places of query tiles in a grid without a prefix sum (`find_query_tile`), of which
    some are empty.
    """
    num_active = 0
    num_tiles = 0
    for start in range(0, num_slots, PASS):
        slots = start + tl.arange(0, PASS)
        seqs = tl.zeros([PASS], tl.int32)  # the last sequence whose slots start at this or before
        left = num_seqs
        while left > 1:
            half = left // 2
            firsts = tl.load(cu_seqlens_q + seqs + half) // BLOCK_Q + seqs + half
            seqs += tl.where(firsts <= slots, half, 0)
            left -= half
        token_start = tl.load(cu_seqlens_q + seqs)
        num_queries = tl.load(cu_seqlens_q + seqs + 1) - token_start
        first_query = (slots - token_start // BLOCK_Q - seqs) * BLOCK_Q
        active = (slots < num_slots) & (num_queries > 1) & (first_query < num_queries)

        seq_len = tl.load(seq_lens + seqs)
        position = seq_len - num_queries + first_query
        tiles = (tl.minimum(position + BLOCK_Q, seq_len) + TILE - 1) // TILE
        if WINDOW > 0:
            tiles -= tl.maximum(position - WINDOW + 1, 0) // TILE
        tiles = tl.where(active, tiles, 0)
        rank = num_active + tl.cumsum(active.to(tl.int32), 0) - 1
        tl.store(tile_seqs_out + rank, seqs, active)
        tl.store(first_queries_out + rank, first_query, active)
        tl.store(cu_tiles_out + rank + 1, num_tiles + tl.cumsum(tiles, 0), active)
        num_active += tl.sum(active.to(tl.int32), 0)
        num_tiles += tl.sum(tiles, 0)
    tl.store(cu_tiles_out, 0)
    tl.store(num_active_out, num_active)
