"""Prefill attention for few query tokens, perhaps after many cached ones: the keys are divided.

`prefill_attention.py` gives each (query tile, KV head) to one program. If there are fewer of these
than multiprocessors, most of a GPU is idle, however many keys they read: a chunk of 32 tokens after
a shared prefix of thousands, or a job that resumes. Here all (query tile, KV head, cache tile)
triples form one line, and as many programs as there are multiprocessors take equal stretches of it.
If a stretch cuts a pair of query tile and KV head, the program stores a partial result with its
log-sum-exp (at most two per program), and a second kernel merges these. Grids and scratch depend on
the device alone: the launch can be captured in a CUDA graph and replayed with other lengths.

Source: stream-K, Osama et al. 2023, section 4; the loop is that of `prefill_attention.py`.
"""

# Triton traces its kernels: no Python annotation would be true of their arguments.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .attention_tuning import PrefillTuning
from .decode_attention import split_scratch
from .decode_plan import find_sequence, holder_of, stretch_of
from .launch import CachedLaunch, dot_precision, interpreted, next_power_of_2
from .prefill_attention import attend_tiles, tile_rows_of
from .prefill_plan import PrefillPlan
from .tiles import LOG2_E, for_cache, load_sinks, normaliser

#: Rows of a query tile that one merging program adds up; half of them if heads are wide.
_MERGE_ROWS = 16


@triton.jit(do_not_specialize=["table_stride"])
def split_prefill_attention_kernel(
    out,  # [num_tokens, NUM_KV_HEADS * GROUP, HEAD_DIM]
    partial_out,  # float32 [2 * programs, BLOCK_M, HEAD_DIM]
    partial_lse,  # float32 [2 * programs, BLOCK_M], base 2
    split_pair,  # int32 [programs]: tile * NUM_KV_HEADS + KV head to merge from here on, or -1
    split_last,  # int32 [programs]: the last program that holds a part of it
    query,  # [num_tokens, NUM_KV_HEADS * GROUP, HEAD_DIM], rows query_stride apart
    k_cache,  # [num_blocks, BLOCK_SIZE, NUM_KV_HEADS, HEAD_DIM]
    v_cache,
    block_tables,  # int32 [num_seqs, max_blocks]
    cu_seqlens_q,  # int32 [num_seqs + 1]
    seq_lens,  # int32 [num_seqs]
    num_active_in,
    tile_seqs,
    first_queries,
    cu_tiles,
    sinks,  # float32 [NUM_KV_HEADS * GROUP], read if HAS_SINKS
    qk_scale,
    v_scale,
    query_stride,
    table_stride,
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
    """Program p attends to its stretch of the line of tiles."""
    BLOCK_Q: tl.constexpr = BLOCK_M // GROUP
    program = tl.program_id(0)
    rows = tl.arange(0, BLOCK_M)
    dims = tl.arange(0, BLOCK_D)

    num_active = tl.load(num_active_in)
    total = tl.load(cu_tiles + num_active) * NUM_KV_HEADS
    position, end = stretch_of(program, tl.num_programs(0), total)
    index = find_sequence(cu_tiles, num_active, position // NUM_KV_HEADS)
    tl.store(split_pair + program, -1)

    while position < end:
        tiles_before = tl.load(cu_tiles + index)
        tiles = tl.load(cu_tiles + index + 1) - tiles_before
        kv_head = (position - tiles_before * NUM_KV_HEADS) // tiles
        pair_start = tiles_before * NUM_KV_HEADS + kv_head * tiles
        stop = tl.minimum(end, pair_start + tiles)

        seq = tl.load(tile_seqs + index)
        first_query = tl.load(first_queries + index)
        token_start = tl.load(cu_seqlens_q + seq)
        num_queries = tl.load(cu_seqlens_q + seq + 1) - token_start
        seq_len = tl.load(seq_lens + seq)
        queries = first_query + rows // GROUP
        stored = (rows < BLOCK_Q * GROUP) & (queries < num_queries)
        mask = stored[:, None] & (dims < HEAD_DIM)[None, :]
        tokens = (token_start + queries).to(tl.int64)
        in_token = (kv_head * GROUP + rows % GROUP)[:, None] * HEAD_DIM + dims[None, :]
        first_position = seq_len - num_queries + first_query
        positions = seq_len - num_queries + queries
        skipped = 0
        num_unmasked = (first_position + 1) // TILE
        if WINDOW > 0:  # any tile may contain an edge of the window
            skipped = tl.maximum(first_position - WINDOW + 1, 0) // TILE
            num_unmasked = skipped
        first_tile = skipped + position - pair_start
        last_tile = skipped + stop - pair_start
        first_masked = tl.minimum(tl.maximum(first_tile, num_unmasked), last_tile)

        q = tl.load(query + tokens[:, None] * query_stride + in_token, mask, 0.0)
        q = for_cache(q, k_cache)
        table_row = block_tables + seq.to(tl.int64) * table_stride
        row_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
        row_sum = tl.zeros([BLOCK_M], tl.float32)
        acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
        if WINDOW == 0:
            acc, row_max, row_sum = attend_tiles(
                q, acc, row_max, row_sum, k_cache, v_cache, table_row, kv_head,
                first_tile, first_masked, positions, seq_len, qk_scale, False,
                NUM_KV_HEADS, HEAD_DIM, BLOCK_SIZE, WINDOW, BLOCK_M, BLOCK_D, TILE,
                UPCAST, PRECISION,
            )  # fmt: skip
        acc, row_max, row_sum = attend_tiles(
            q, acc, row_max, row_sum, k_cache, v_cache, table_row, kv_head,
            first_masked, last_tile, positions, seq_len, qk_scale, True,
            NUM_KV_HEADS, HEAD_DIM, BLOCK_SIZE, WINDOW, BLOCK_M, BLOCK_D, TILE,
            UPCAST, PRECISION,
        )  # fmt: skip
        # Read again, so that the places of results are computed again and held by no register in
        # the loops.
        token_start = tl.load(cu_seqlens_q + seq, volatile=True)
        first_query = tl.load(first_queries + index, volatile=True)
        again = tl.load(cu_tiles + index, volatile=True)
        kv_head = (position - again * NUM_KV_HEADS) // tiles
        queries = first_query + rows // GROUP
        stored = (rows < BLOCK_Q * GROUP) & (queries < num_queries)
        mask = stored[:, None] & (dims < HEAD_DIM)[None, :]
        tokens = (token_start + queries).to(tl.int64)
        in_token = (kv_head * GROUP + rows % GROUP)[:, None] * HEAD_DIM + dims[None, :]
        # Rows that saw no key of these tiles have a sum of 0; other parts may have seen some.
        safe_sum = tl.where(row_sum == 0, 1.0, row_sum)
        if stop - position == tiles:
            if HAS_SINKS:
                sink = load_sinks(sinks, kv_head * GROUP + rows % GROUP, stored)
                acc = acc * (v_scale * normaliser(row_sum, row_max, sink))[:, None]
            else:
                acc = acc * (v_scale / safe_sum)[:, None]
            stride = NUM_KV_HEADS * GROUP * HEAD_DIM
            tl.store(out + tokens[:, None] * stride + in_token, acc.to(out.dtype.element_ty), mask)
        else:
            slot = 2 * program
            if position == pair_start:
                slot += 1
                tl.store(split_pair + program, index * NUM_KV_HEADS + kv_head)
                last = holder_of(pair_start + tiles - 1, tl.num_programs(0), total)
                tl.store(split_last + program, last)
            place = (slot * BLOCK_M + rows)[:, None] * HEAD_DIM + dims[None, :]
            tl.store(partial_out + place, acc * (v_scale / safe_sum)[:, None], mask)
            lse = tl.where(row_sum == 0, float("-inf"), row_max + tl.log2(safe_sum))
            tl.store(partial_lse + slot * BLOCK_M + rows, lse, stored)
        position = stop
        if stop == (tiles_before + tiles) * NUM_KV_HEADS:
            index += 1


@triton.jit
def merge_prefill_kernel(
    out,  # [num_tokens, NUM_KV_HEADS * GROUP, HEAD_DIM]
    partial_out,  # float32 [2 * programs, BLOCK_M, HEAD_DIM]
    partial_lse,  # float32 [2 * programs, BLOCK_M], base 2
    split_pair,  # int32 [programs]
    split_last,  # int32 [programs]
    cu_seqlens_q,  # int32 [num_seqs + 1]
    tile_seqs,
    first_queries,
    sinks,  # float32 [NUM_KV_HEADS * GROUP], read if HAS_SINKS
    NUM_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Program (p, r): merge ROWS rows of the pair that program p began and others continued."""
    BLOCK_Q: tl.constexpr = BLOCK_M // GROUP
    program = tl.program_id(0)
    pair = tl.load(split_pair + program)
    if pair >= 0:
        last = tl.load(split_last + program)
        index = pair // NUM_KV_HEADS
        kv_head = pair % NUM_KV_HEADS
        seq = tl.load(tile_seqs + index)
        token_start = tl.load(cu_seqlens_q + seq)
        num_queries = tl.load(cu_seqlens_q + seq + 1) - token_start
        rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
        dims = tl.arange(0, BLOCK_D)
        queries = tl.load(first_queries + index) + rows // GROUP
        stored = (rows < BLOCK_Q * GROUP) & (queries < num_queries)
        mask = stored[:, None] & (dims < HEAD_DIM)[None, :]
        highest = tl.full([ROWS], float("-inf"), tl.float32)
        weight_sum = tl.zeros([ROWS], tl.float32)
        acc = tl.zeros([ROWS, BLOCK_D], tl.float32)
        for part in range(program, last + 1):
            places = (2 * part + (part == program).to(tl.int32)) * BLOCK_M + rows
            lse = tl.load(partial_lse + places, stored, float("-inf"))
            values = tl.load(partial_out + places[:, None] * HEAD_DIM + dims[None, :], mask, 0.0)
            new_highest = tl.maximum(highest, lse)
            # A row may have seen no key yet: -inf - -inf would be NaN.
            shift = tl.where(new_highest == float("-inf"), 0.0, new_highest)
            shrink = tl.exp2(highest - shift)
            weights = tl.exp2(lse - shift)
            acc = acc * shrink[:, None] + values * weights[:, None]
            weight_sum = weight_sum * shrink + weights
            highest = new_highest
        heads = kv_head * GROUP + rows % GROUP
        if HAS_SINKS:  # once for all parts
            sink = load_sinks(sinks, heads, stored)
            acc = acc * normaliser(weight_sum, highest, sink)[:, None]
        else:
            acc = acc / tl.where(weight_sum == 0, 1.0, weight_sum)[:, None]
        heads_before = (token_start + queries).to(tl.int64) * (NUM_KV_HEADS * GROUP) + heads
        place = heads_before[:, None] * HEAD_DIM + dims[None, :]
        tl.store(out + place, acc.to(out.dtype.element_ty), mask)


def split_prefill_attention(
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
    plan: PrefillPlan,
    tuning: PrefillTuning,
    *,
    num_programs: int,
    sliding_window: int = 0,
    sinks: Tensor | None = None,
) -> None:
    """Write the attention of every sequence that has two or more query tokens into `out`.

    Rows of sequences with one query token are not written. The arguments are those of
    `prefill_attention`; `plan` is one of `plan_prefill` on the same lengths, with `tile_rows_of` //
    group queries per tile, and `num_programs` programs share its tiles: one per multiprocessor,
    because no more are resident.
    """
    num_kv_heads, head_dim = k_cache.shape[2:]
    group = query.shape[1] // num_kv_heads
    tile_rows = tile_rows_of(tuning, group)
    scratch = split_scratch(num_programs, tile_rows, head_dim, query.device)
    some_sinks = query if sinks is None else sinks
    block_d = next_power_of_2(head_dim)
    _launch_split(
        (num_programs,),
        (out, *scratch, query, k_cache, v_cache, block_tables, cu_seqlens_q, seq_lens,
         plan.num_active, plan.tile_seqs, plan.first_queries, plan.cu_tiles, some_sinks),
        (scale * k_scale * LOG2_E, v_scale, query.stride(0), block_tables.stride(0)),
        NUM_KV_HEADS=num_kv_heads, GROUP=group, HEAD_DIM=head_dim, BLOCK_SIZE=k_cache.shape[1],
        WINDOW=sliding_window, HAS_SINKS=sinks is not None, BLOCK_M=tile_rows, BLOCK_D=block_d,
        TILE=tuning.tile_tokens, UPCAST=interpreted(split_prefill_attention_kernel),
        PRECISION=dot_precision(query.dtype), num_warps=tuning.num_warps,
        num_stages=tuning.num_stages, enable_fp_fusion=True,
    )  # fmt: skip
    merge_rows = _MERGE_ROWS if block_d <= 128 else _MERGE_ROWS // 2
    _launch_merge(
        (num_programs, tile_rows // merge_rows),
        (out, *scratch, cu_seqlens_q, plan.tile_seqs, plan.first_queries, some_sinks),
        NUM_KV_HEADS=num_kv_heads, GROUP=group, HEAD_DIM=head_dim, HAS_SINKS=sinks is not None,
        BLOCK_M=tile_rows, BLOCK_D=block_d, ROWS=merge_rows, num_warps=4, enable_fp_fusion=True,
    )  # fmt: skip


_launch_split = CachedLaunch(split_prefill_attention_kernel)
_launch_merge = CachedLaunch(merge_prefill_kernel)
