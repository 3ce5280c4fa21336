"""Decode attention over a paged cache: one query token per sequence, bound by cache reads.

All (sequence, KV head, tile) triples of the batch form one line, and a fixed number of programs
take stretches of it that differ by one tile at most, so a long sequence among short ones leaves no
program idle. A program whose stretch covers a whole (sequence, KV head) pair writes its output. If
the stretch cuts a pair, the program stores a partial result with its log-sum-exp (at most two per
program), and a second kernel merges these. Grids and scratch depend on the device alone: the launch
can be captured in a CUDA graph and replayed with other lengths.

The query heads that share a KV head are the rows of one tile, so each key is read once for all.

Source: flash-decoding, Dao et al. 2023; stream-K, Osama et al. 2023, section 4; packing the query
group as in vLLM's and LightLLM's decode kernels.
"""

# Triton traces its kernels: no Python annotation would be true of their arguments.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .attention_tuning import DecodeTuning
from .decode_plan import DecodePlan, find_sequence, holder_of, stretch_of
from .launch import CachedLaunch, dot_precision, interpreted, next_power_of_2, num_multiprocessors
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

#: Partial results that one merging program loads at a time.
_MERGE_PASS = 16


@triton.jit
def attend_stretch(
    query,  # [BLOCK_M, BLOCK_D]
    k_cache,
    v_cache,
    table_row,
    kv_head,
    first_tile,
    last_tile,
    seq_len,
    qk_scale,
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
    """Attend with one token's query rows to the tiles [first_tile, last_tile)."""
    row_max = tl.full([BLOCK_M], float("-inf"), tl.float32)
    row_sum = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    block_ids = load_block_ids(table_row, first_tile * TILE, seq_len, BLOCK_SIZE, TILE)
    for tile in range(first_tile, last_tile):
        start = tile * TILE
        tokens = start + tl.arange(0, TILE)
        offsets = tile_offsets(
            block_ids, start, kv_head, NUM_KV_HEADS, HEAD_DIM, BLOCK_SIZE, TILE, BLOCK_D
        )
        key = load_tile(k_cache, offsets, tokens, seq_len, HEAD_DIM, BLOCK_D, True).to(query.dtype)
        scores = tl.zeros([BLOCK_M, TILE], tl.float32)
        scores = matmul(query, tl.trans(key), scores, UPCAST, PRECISION) * qk_scale
        visible = tokens < seq_len
        if WINDOW > 0:
            visible = visible & (tokens >= seq_len - WINDOW)
        # Every tile of a plan holds a visible token, so no row's maximum stays at -inf.
        scores = tl.where(visible[None, :], scores, float("-inf"))
        weights, shrink, row_max, row_sum = softmax_step(scores, visible, row_max, row_sum, False)
        value = load_tile(v_cache, offsets, tokens, seq_len, HEAD_DIM, BLOCK_D, True)
        value = value.to(query.dtype)
        acc = matmul(weights.to(query.dtype), value, acc * shrink[:, None], UPCAST, PRECISION)
        block_ids = load_block_ids(table_row, start + TILE, seq_len, BLOCK_SIZE, TILE)
    return acc / row_sum[:, None], row_max + tl.log2(row_sum)


@triton.jit(do_not_specialize=["table_stride"])
def decode_attention_kernel(
    out,  # [num_tokens, NUM_KV_HEADS * GROUP, HEAD_DIM]
    partial_out,  # float32 [2 * programs, GROUP, HEAD_DIM]
    partial_lse,  # float32 [2 * programs, GROUP], base 2
    split_pair,  # int32 [programs]: row * NUM_KV_HEADS + KV head to merge from here on, or -1
    split_last,  # int32 [programs]: the last program that holds a part of it
    query,  # [num_tokens, NUM_KV_HEADS * GROUP, HEAD_DIM], rows query_stride apart
    k_cache,  # [num_blocks, BLOCK_SIZE, NUM_KV_HEADS, HEAD_DIM]
    v_cache,
    block_tables,  # int32 [num_seqs, max_blocks]
    cu_seqlens_q,  # int32 [num_seqs + 1]
    seq_lens,  # int32 [num_seqs]
    num_active_in,
    active_seqs,
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
    program = tl.program_id(0)
    heads = tl.arange(0, BLOCK_M)
    dims = tl.arange(0, BLOCK_D)
    stored = (heads < GROUP)[:, None] & (dims < HEAD_DIM)[None, :]
    group_offsets = heads[:, None] * HEAD_DIM + dims[None, :]

    num_active = tl.load(num_active_in)
    total = tl.load(cu_tiles + num_active) * NUM_KV_HEADS
    position, end = stretch_of(program, tl.num_programs(0), total)
    index = find_sequence(cu_tiles, num_active, position // NUM_KV_HEADS)
    tl.store(split_pair + program, -1)

    while position < end:
        seq = tl.load(active_seqs + index)
        seq_start = tl.load(cu_tiles + index)
        tiles = tl.load(cu_tiles + index + 1) - seq_start
        kv_head = (position - seq_start * NUM_KV_HEADS) // tiles
        pair_start = seq_start * NUM_KV_HEADS + kv_head * tiles
        pair_end = pair_start + tiles
        stop = tl.minimum(end, pair_end)

        row = tl.load(cu_seqlens_q + seq)
        seq_len = tl.load(seq_lens + seq)
        skipped = 0
        if WINDOW > 0:
            skipped = tl.maximum(seq_len - WINDOW, 0) // TILE
        first_head = kv_head * GROUP * HEAD_DIM
        query_row = query + row.to(tl.int64) * query_stride + first_head
        acc, lse = attend_stretch(
            for_cache(tl.load(query_row + group_offsets, stored, 0.0), k_cache),
            k_cache,
            v_cache,
            block_tables + seq.to(tl.int64) * table_stride,
            kv_head,
            skipped + position - pair_start,
            skipped + stop - pair_start,
            seq_len,
            qk_scale,
            NUM_KV_HEADS,
            HEAD_DIM,
            BLOCK_SIZE,
            WINDOW,
            BLOCK_M,
            BLOCK_D,
            TILE,
            UPCAST,
            PRECISION,
        )
        acc = acc * v_scale
        if stop - position == tiles:
            if HAS_SINKS:
                sink = load_sinks(sinks, kv_head * GROUP + heads, heads < GROUP)
                acc = acc * normaliser(1.0, lse, sink)[:, None]
            row_out = out + row.to(tl.int64) * (NUM_KV_HEADS * GROUP * HEAD_DIM) + first_head
            tl.store(row_out + group_offsets, acc.to(out.dtype.element_ty), stored)
        else:
            slot = 2 * program
            if position == pair_start:
                slot += 1
                tl.store(split_pair + program, row * NUM_KV_HEADS + kv_head)
                last = holder_of(pair_end - 1, tl.num_programs(0), total)
                tl.store(split_last + program, last)
            tl.store(partial_out + slot * (GROUP * HEAD_DIM) + group_offsets, acc, stored)
            tl.store(partial_lse + slot * GROUP + heads, lse, heads < GROUP)
        position = stop
        if stop == (seq_start + tiles) * NUM_KV_HEADS:
            index += 1


@triton.jit(do_not_specialize=["num_seqs"])
def merge_decode_kernel(
    out,  # [num_tokens, NUM_KV_HEADS * GROUP, HEAD_DIM]
    partial_out,  # float32 [2 * programs, GROUP, HEAD_DIM]
    partial_lse,  # float32 [2 * programs, GROUP], base 2
    split_pair,  # int32 [programs]
    split_last,  # int32 [programs]
    cu_seqlens_q,  # int32 [num_seqs + 1]
    seq_lens,  # int32 [num_seqs]
    sinks,  # float32 [NUM_KV_HEADS * GROUP], read if HAS_SINKS
    num_seqs,
    NUM_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PASS: tl.constexpr,
):
    """Program (p, h): merge head h of the pair that program p began and others continued.

    The program also zeroes padding rows (one query, no cached token), so that old contents of the
    output buffer cannot spread.
    """
    program = tl.program_id(0)
    head = tl.program_id(1)
    dims = tl.arange(0, BLOCK_D)
    in_head = dims < HEAD_DIM
    for seq in range(program, num_seqs, tl.num_programs(0)):
        row = tl.load(cu_seqlens_q + seq)
        num_queries = tl.load(cu_seqlens_q + seq + 1) - row
        if (tl.load(seq_lens + seq) == 0) & (num_queries == 1):
            for kv_head in range(NUM_KV_HEADS):
                target = (row.to(tl.int64) * NUM_KV_HEADS + kv_head) * GROUP + head
                empty = tl.zeros([BLOCK_D], out.dtype.element_ty)
                tl.store(out + target * HEAD_DIM + dims, empty, in_head)

    pair = tl.load(split_pair + program)
    if pair >= 0:
        last = tl.load(split_last + program)
        highest = float("-inf")
        weight_sum = 0.0
        acc = tl.zeros([BLOCK_D], tl.float32)
        for start in range(program, last + 1, PASS):
            parts = start + tl.arange(0, PASS)
            held = parts <= last
            slots = 2 * parts + (parts == program).to(tl.int32)
            lse = tl.load(partial_lse + slots * GROUP + head, held, float("-inf"))
            new_highest = tl.maximum(highest, tl.max(lse, 0))
            shrink = tl.exp2(highest - new_highest)
            weights = tl.exp2(lse - new_highest)
            values = tl.load(
                partial_out + (slots * GROUP + head)[:, None] * HEAD_DIM + dims[None, :],
                held[:, None] & in_head[None, :],
                0.0,
            )
            acc = acc * shrink + tl.sum(values * weights[:, None], 0)
            weight_sum = weight_sum * shrink + tl.sum(weights, 0)
            highest = new_highest
        target = (pair // NUM_KV_HEADS).to(tl.int64) * (NUM_KV_HEADS * GROUP)
        head_in_row = (pair % NUM_KV_HEADS) * GROUP + head
        target += head_in_row
        if HAS_SINKS:  # once for all parts
            acc = acc * normaliser(weight_sum, highest, load_sinks(sinks, head_in_row, True))
        else:
            acc = acc / weight_sum
        merged = acc.to(out.dtype.element_ty)
        tl.store(out + target * HEAD_DIM + dims, merged, in_head)


def decode_attention(
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
    plan: DecodePlan,
    tuning: DecodeTuning,
    *,
    sinks: Tensor | None = None,
    num_programs: int | None = None,
) -> None:
    """Write the attention of every sequence that has exactly one query token into `out`.

    Rows of other sequences are not written; rows of padding (cached length 0) become 0.

    Args:
        out: [num_tokens, num_heads, head_dim], contiguous.
        query: Same shape; the last two dimensions contiguous.
        k_cache: [num_blocks, block_size, num_kv_heads, head_dim], contiguous; the query's dtype
            or float8_e4m3fn.
        v_cache: As `k_cache`.
        block_tables: [num_seqs, max_blocks] int32.
        cu_seqlens_q: [num_seqs + 1] int32.
        seq_lens: [num_seqs] int32, cached tokens after this step's write.
        scale: Factor on the scores.
        k_scale: Value of one unit in the key cache.
        v_scale: Value of one unit in the value cache.
        plan: From `plan_decode` on the same lengths.
        tuning: Tile sizes; its tile is the plan's.
        sinks: [num_heads] float32, see `paged_attention`.
        num_programs: Overrides the programs per multiprocessor x multiprocessors.
    """
    num_kv_heads, head_dim = k_cache.shape[2:]
    group = query.shape[1] // num_kv_heads
    if num_programs is None:
        num_programs = num_multiprocessors(query.device) * tuning.programs_per_sm
    scratch = split_scratch(num_programs, group, head_dim, query.device)
    block_d = next_power_of_2(head_dim)
    _launch_decode_attention(
        (num_programs,),
        (out, *scratch, query, k_cache, v_cache, block_tables, cu_seqlens_q, seq_lens,
         plan.num_active, plan.active_seqs, plan.cu_tiles, query if sinks is None else sinks),
        (scale * k_scale * LOG2_E, v_scale, query.stride(0), block_tables.stride(0)),
        NUM_KV_HEADS=num_kv_heads, GROUP=group, HEAD_DIM=head_dim, BLOCK_SIZE=k_cache.shape[1],
        WINDOW=plan.sliding_window, HAS_SINKS=sinks is not None,
        BLOCK_M=max(16, next_power_of_2(group)), BLOCK_D=block_d, TILE=plan.tile_tokens,
        UPCAST=interpreted(decode_attention_kernel), PRECISION=dot_precision(query.dtype),
        num_warps=tuning.num_warps, num_stages=tuning.num_stages, enable_fp_fusion=True,
    )  # fmt: skip
    _launch_merge_decode(
        (num_programs, group),
        (out, *scratch, cu_seqlens_q, seq_lens, query if sinks is None else sinks),
        (seq_lens.shape[0],),
        NUM_KV_HEADS=num_kv_heads, GROUP=group, HEAD_DIM=head_dim, HAS_SINKS=sinks is not None,
        BLOCK_D=block_d,
        PASS=_MERGE_PASS, num_warps=2, enable_fp_fusion=True,
    )  # fmt: skip


_launch_decode_attention = CachedLaunch(decode_attention_kernel)
_launch_merge_decode = CachedLaunch(merge_decode_kernel)


def split_scratch(
    num_programs: int, num_rows: int, head_dim: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Allocate `partial_out`, `partial_lse`, `split_pair` and `split_last` as one tensor.

    Args:
        num_programs: Programs, each of which has at most two partial results.
        num_rows: Rows of a partial result.
        head_dim: Numbers of a row.
        device: Where the kernels run.
    """
    rows = 2 * num_programs * num_rows
    sizes = (rows * head_dim, rows, num_programs, num_programs)
    scratch = torch.empty(sum(sizes), dtype=torch.float32, device=device)
    partial_out, partial_lse, split_pair, split_last = scratch.split(sizes)
    return partial_out, partial_lse, split_pair.view(torch.int32), split_last.view(torch.int32)
