"""Triton backend of `sample`: no sort, no synchronisation, and no random state.

Rows with min-p, top-k or top-p first get a floor, the smallest logit that they keep
(`sample_floor.py`); other rows leave that kernel at once. Then each tile of the vocabulary is
searched for the largest logit plus noise, and a small kernel picks the best tile.

The noise hashes (seed, position, token id) exactly as the reference does; its logarithms are
correct to a few units in the last place, like the reference's.
"""

# Triton traces its kernels: no Python annotation would be true of their arguments.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import CachedLaunch, check_device, next_power_of_2
from .sample_floor import MAX_CANDIDATES, sample_floor_kernel, scale_logits

#: Vocabulary entries per program of the search.
TILE = 4096
#: Entries that the one program of a filtered row reads at a time.
FLOOR_TILE = 2048


@triton.jit
def scramble(block):
    """Scramble a 32-bit block as MurmurHash3 does before it enters the state."""
    block = block * 0xCC9E2D51
    return ((block << 15) | (block >> 17)) * 0x1B873593


@triton.jit
def advance(state, scrambled):
    """Add one scrambled block to a MurmurHash3 state."""
    state = state ^ scrambled
    return ((state << 13) | (state >> 19)) * 5 + 0xE6546B64


@triton.jit
def gumbel_noise(seed, position, token_ids):
    """Return the Gumbel noise of one row's tokens, [tile] float32.

    It is a pure function of (seed, position, token id).

    Source: MurmurHash3_x86_32, Austin Appleby, public domain.
    """
    state = advance(tl.zeros_like(token_ids).to(tl.uint32), scramble(seed.to(tl.uint32)))
    state = advance(state, scramble((seed >> 32).to(tl.uint32)))
    state = advance(state, scramble(position.to(tl.uint32)))
    state = advance(state, scramble(token_ids.to(tl.uint32))) ^ 16
    state = (state ^ (state >> 16)) * 0x85EBCA6B
    state = (state ^ (state >> 13)) * 0xC2B2AE35
    state = state ^ (state >> 16)
    uniform = ((state & 0x7FFFFFFF).to(tl.int32).to(tl.float32) + 0.5) * 4.656612873077393e-10
    uniform = tl.minimum(uniform, 1 - 2.0**-24)
    # log1p(-u) by log: the rounding error of 1 - u is divided out again (Goldberg 1991, th. 4).
    rest = 1.0 - uniform
    lost = 1.0 - rest
    exact = lost == 0
    exponential = -tl.log(rest) * tl.div_rn(uniform, tl.where(exact, 1.0, lost))
    return -tl.log(tl.where(exact, uniform, exponential))


@triton.jit
def sample_tile_kernel(
    best_scores,  # float32 [num_rows, num_tiles]
    best_ids,  # int32 [num_rows, num_tiles]
    floors,  # float32 [num_rows]
    logits,  # float32 [num_rows, vocab_size], rows row_stride apart
    temperature,  # float32 [num_rows]
    seeds,  # int64 [num_rows]
    positions,  # int64 [num_rows]
    row_stride,
    vocab_size,
    TILE: tl.constexpr,
):
    """Program (r, t): the best kept token of tile t of row r; the lowest id among equals."""
    index = tl.program_id(0)
    tile = tl.program_id(1)
    columns = tile * TILE + tl.arange(0, TILE)
    values = tl.load(
        logits + index.to(tl.int64) * row_stride + columns, columns < vocab_size, float("-inf")
    )
    heat = tl.load(temperature + index)
    scores = values
    if heat > 0:
        scaled = scale_logits(values, heat)
        noise = gumbel_noise(tl.load(seeds + index), tl.load(positions + index), columns)
        scores = tl.where(values >= tl.load(floors + index), scaled + noise, float("-inf"))
    scores = tl.where(scores == scores, scores, float("-inf"))  # NaN must not decide the index
    best, column = tl.max(scores, 0, return_indices=True, return_indices_tie_break_left=True)
    slot = index * tl.num_programs(1) + tile
    tl.store(best_scores + slot, best)
    tl.store(best_ids + slot, tile * TILE + column)


@triton.jit
def sample_pick_kernel(
    token_ids,  # int64 [num_rows]
    best_scores,  # float32 [num_rows, num_tiles]
    best_ids,  # int32 [num_rows, num_tiles]
    num_tiles,
    BLOCK: tl.constexpr,
):
    """Program r: the best of row r's tiles, the first among equals."""
    index = tl.program_id(0)
    tiles = tl.arange(0, BLOCK)
    scores = tl.load(best_scores + index * num_tiles + tiles, tiles < num_tiles, float("-inf"))
    _, tile = tl.max(scores, 0, return_indices=True, return_indices_tie_break_left=True)
    tl.store(token_ids + index, tl.load(best_ids + index * num_tiles + tile).to(tl.int64))


def sample_triton(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p_gaps: Tensor,
    seeds: Tensor,
    positions: Tensor,
) -> Tensor:
    """Compute `sample`."""
    check_device("sample", sample_tile_kernel, logits)
    num_rows, vocab_size = logits.shape
    token_ids = torch.empty(num_rows, dtype=torch.int64, device=logits.device)
    if num_rows == 0:
        return token_ids
    num_tiles = -(-vocab_size // TILE)
    floors = torch.empty(num_rows, dtype=torch.float32, device=logits.device)
    candidates = logits.new_empty((num_rows, MAX_CANDIDATES))
    best_scores = torch.empty((num_rows, num_tiles), dtype=torch.float32, device=logits.device)
    best_ids = torch.empty((num_rows, num_tiles), dtype=torch.int32, device=logits.device)
    stride = logits.stride(0)
    _launch_floor(
        (num_rows,),
        (floors, candidates, logits, temperature, top_k, top_p, min_p_gaps), (stride, vocab_size),
        MOST=MAX_CANDIDATES, TILE=FLOOR_TILE, num_warps=16, enable_fp_fusion=False,
    )  # fmt: skip
    _launch_tile(
        (num_rows, num_tiles),
        (best_scores, best_ids, floors, logits, temperature, seeds, positions),
        (stride, vocab_size),
        TILE=TILE, num_warps=8, enable_fp_fusion=False,
    )  # fmt: skip
    _launch_pick(
        (num_rows,), (token_ids, best_scores, best_ids), (num_tiles,),
        BLOCK=next_power_of_2(num_tiles), num_warps=1, enable_fp_fusion=False,
    )  # fmt: skip
    return token_ids


_launch_floor = CachedLaunch(sample_floor_kernel)
_launch_tile = CachedLaunch(sample_tile_kernel)
_launch_pick = CachedLaunch(sample_pick_kernel)
