"""Prefill attention over a paged cache: many query tokens per sequence, bound by arithmetic.

A program holds up to `tile_rows` rows of one (sequence, KV head): its query heads times as many
consecutive queries as fit, so that a tile of keys serves the whole group and the tile is tall
enough for the warp-group matrix instructions. Tiles of the cache that every row sees come first,
without a mask; then the few on the diagonal.

The grid is an upper bound from padded sizes (num_tokens // queries per tile + num_seqs): a program
finds its sequence by bisection over `cu_seqlens_q` and ends if it has none, so the host reads no
length.

Source: FlashAttention-2, Dao 2023; bisection over padded grids as in vLLM's unified attention.
"""

# Triton traces its kernels: no Python annotation would be true of their arguments.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .attention_tuning import PrefillTuning
from .launch import CachedLaunch, dot_precision, interpreted, next_power_of_2
from .tiles import (
    LOG2_E,
    for_cache,
    load_block_ids,
    load_sinks,
    load_tile,
    matmul,
    normaliser,
    softmax_step,
    tile_offsets,
)


@triton.jit
def find_query_tile(cu_seqlens_q, tile, num_seqs, BLOCK_Q: tl.constexpr):
    """Return the sequence that owns a query tile.

    The tiles of sequence s begin at cu_seqlens_q[s] // BLOCK_Q + s. That leaves room for every
    sequence's last, partly filled tile without a prefix sum.
    """
    low = 0
    high = num_seqs
    while high - low > 1:
        middle = (low + high) // 2
        if tl.load(cu_seqlens_q + middle) // BLOCK_Q + middle <= tile:
            low = middle
        else:
            high = middle
    return low


@triton.jit
def attend_tiles(
    query,  # [BLOCK_M, BLOCK_D]
    acc,  # float32 [BLOCK_M, BLOCK_D]
    row_max,  # float32 [BLOCK_M]
    row_sum,  # float32 [BLOCK_M]
    k_cache,
    v_cache,
    table_row,
    kv_head,
    first_tile,
    last_tile,
    positions,  # [BLOCK_M] position of each row's query in its sequence
    seq_len,
    qk_scale,
    MASKED: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    TILE: tl.constexpr,
    UPCAST: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Continue a block of rows over the cache tiles [first_tile, last_tile)."""
    block_ids = load_block_ids(table_row, first_tile * TILE, seq_len, BLOCK_SIZE, TILE)
    for tile in range(first_tile, last_tile):
        start = tile * TILE
        tokens = start + tl.arange(0, TILE)
        offsets = tile_offsets(
            block_ids, start, kv_head, NUM_KV_HEADS, HEAD_DIM, BLOCK_SIZE, TILE, BLOCK_D
        )
        key = load_tile(k_cache, offsets, tokens, seq_len, HEAD_DIM, BLOCK_D, MASKED)
        scores = tl.zeros([BLOCK_M, TILE], tl.float32)
        scores = matmul(query, tl.trans(key.to(query.dtype)), scores, UPCAST, PRECISION) * qk_scale
        visible = tokens[None, :] <= positions[:, None]
        if WINDOW > 0:
            visible = visible & (tokens[None, :] > positions[:, None] - WINDOW)
        weights, shrink, row_max, row_sum = softmax_step(scores, visible, row_max, row_sum, MASKED)
        value = load_tile(v_cache, offsets, tokens, seq_len, HEAD_DIM, BLOCK_D, MASKED)
        value = value.to(query.dtype)
        acc = matmul(weights.to(query.dtype), value, acc * shrink[:, None], UPCAST, PRECISION)
        block_ids = load_block_ids(table_row, start + TILE, seq_len, BLOCK_SIZE, TILE)
    return acc, row_max, row_sum


@triton.jit(do_not_specialize=["table_stride", "num_seqs"])
def prefill_attention_kernel(
    out,  # [num_tokens, NUM_KV_HEADS * GROUP, HEAD_DIM]
    query,  # [num_tokens, NUM_KV_HEADS * GROUP, HEAD_DIM], rows query_stride apart
    k_cache,  # [num_blocks, BLOCK_SIZE, NUM_KV_HEADS, HEAD_DIM]
    v_cache,
    block_tables,  # int32 [num_seqs, max_blocks]
    cu_seqlens_q,  # int32 [num_seqs + 1]
    seq_lens,  # int32 [num_seqs]
    sinks,  # float32 [NUM_KV_HEADS * GROUP], read if HAS_SINKS
    qk_scale,
    v_scale,
    query_stride,
    table_stride,
    num_seqs,
    NUM_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    WINDOW: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    TILE: tl.constexpr,
    UPCAST: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Program (t, h): query tile t, KV head h; sequences with a single query are skipped."""
    BLOCK_Q: tl.constexpr = BLOCK_M // GROUP
    query_tile = tl.program_id(0)
    kv_head = tl.program_id(1)
    seq = find_query_tile(cu_seqlens_q, query_tile, num_seqs, BLOCK_Q)
    token_start = tl.load(cu_seqlens_q + seq)
    num_queries = tl.load(cu_seqlens_q + seq + 1) - token_start
    # The last queries read most: their programs start first, so that none of them ends last, alone.
    order = query_tile - (token_start // BLOCK_Q + seq)
    first_query = (tl.cdiv(num_queries, BLOCK_Q) - 1 - order) * BLOCK_Q
    if (num_queries > 1) & (first_query >= 0):
        rows = tl.arange(0, BLOCK_M)
        dims = tl.arange(0, BLOCK_D)
        queries = first_query + rows // GROUP
        stored = (rows < BLOCK_Q * GROUP) & (queries < num_queries)
        mask = stored[:, None] & (dims < HEAD_DIM)[None, :]
        tokens = (token_start + queries).to(tl.int64)
        in_token = (kv_head * GROUP + rows % GROUP)[:, None] * HEAD_DIM + dims[None, :]

        seq_len = tl.load(seq_lens + seq)
        num_before = seq_len - num_queries
        positions = num_before + queries
        first_position = num_before + first_query
        end = tl.minimum(first_position + BLOCK_Q, seq_len)
        first_tile = 0
        num_unmasked = (first_position + 1) // TILE
        if WINDOW > 0:  # any tile may contain an edge of the window
            first_tile = tl.maximum(first_position - WINDOW + 1, 0) // TILE
            num_unmasked = first_tile

        q = tl.load(query + tokens[:, None] * query_stride + in_token, mask, 0.0)
        q = for_cache(q, k_cache)
        table_row = block_tables + seq.to(tl.int64) * table_stride
        row_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
        row_sum = tl.zeros([BLOCK_M], tl.float32)
        acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        if WINDOW == 0:
            acc, row_max, row_sum = attend_tiles(
                q, acc, row_max, row_sum, k_cache, v_cache, table_row, kv_head,
                0, num_unmasked, positions, seq_len, qk_scale, False,
                NUM_KV_HEADS, HEAD_DIM, BLOCK_SIZE, WINDOW, BLOCK_M, BLOCK_D, TILE,
                UPCAST, PRECISION,
            )  # fmt: skip
        acc, row_max, row_sum = attend_tiles(
            q, acc, row_max, row_sum, k_cache, v_cache, table_row, kv_head,
            num_unmasked, tl.cdiv(end, TILE), positions, seq_len, qk_scale, True,
            NUM_KV_HEADS, HEAD_DIM, BLOCK_SIZE, WINDOW, BLOCK_M, BLOCK_D, TILE,
            UPCAST, PRECISION,
        )  # fmt: skip
        # Rows without a query may have seen no key; they are not stored.
        if HAS_SINKS:
            sink = load_sinks(sinks, kv_head * GROUP + rows % GROUP, stored)
            acc = acc * (v_scale * normaliser(row_sum, row_max, sink))[:, None]
        else:
            acc = acc * (v_scale / tl.where(row_sum == 0, 1.0, row_sum))[:, None]
        stride = NUM_KV_HEADS * GROUP * HEAD_DIM
        tl.store(out + tokens[:, None] * stride + in_token, acc.to(out.dtype.element_ty), mask)


def prefill_attention(
    out: Tensor,
    query: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_tables: Tensor,
    cu_seqlens_q: Tensor,
    seq_lens: Tensor,
    scale: float,
    k_scale: float,
    v_scale: float,
    tuning: PrefillTuning,
    *,
    sliding_window: int = 0,
    sinks: Tensor | None = None,
) -> None:
    """Write the attention of every sequence that has two or more query tokens into `out`.

    Rows of sequences with one query token are not written: decode serves those. The arguments are
    those of `decode_attention`; `sliding_window` counts the tokens that a query sees, its own
    included, and 0 means all of them.
    """
    num_tokens, num_heads, head_dim = query.shape
    num_kv_heads = k_cache.shape[2]
    group = num_heads // num_kv_heads
    tile_rows = tile_rows_of(tuning, group)
    num_seqs = seq_lens.shape[0]
    _launch_prefill_attention(
        (num_tokens // (tile_rows // group) + num_seqs, num_kv_heads),
        (out, query, k_cache, v_cache, block_tables, cu_seqlens_q, seq_lens,
         query if sinks is None else sinks),
        (scale * k_scale * LOG2_E, v_scale, query.stride(0), block_tables.stride(0), num_seqs),
        NUM_KV_HEADS=num_kv_heads, GROUP=group, HEAD_DIM=head_dim, BLOCK_SIZE=k_cache.shape[1],
        WINDOW=sliding_window, HAS_SINKS=sinks is not None, BLOCK_M=tile_rows,
        BLOCK_D=next_power_of_2(head_dim), TILE=tuning.tile_tokens,
        UPCAST=interpreted(prefill_attention_kernel), PRECISION=dot_precision(query.dtype),
        num_warps=tuning.num_warps, num_stages=tuning.num_stages, enable_fp_fusion=True,
    )  # fmt: skip


def tile_rows_of(tuning: PrefillTuning, group: int) -> int:
    """Return the rows of a program: a group larger than the tuned tile needs those of a query."""
    return max(tuning.tile_rows, next_power_of_2(group))


_launch_prefill_attention = CachedLaunch(prefill_attention_kernel)
