"""Triton face of `sample`: no sort, no synchronisation, and no random state.

Rows that ask for top-k or top-p get a floor first: the smallest value they keep, found bit by bit
in an order-preserving integer image of the scaled logits. All other rows skip that kernel at once.
Then tiles of the vocabulary are searched for the largest logit plus noise, and a small kernel picks
the best tile.

The noise hashes (seed, position, token id) as the reference does, bit for bit; its logarithms are
correct to a few units in the last place, as the reference's are.
"""

# Kernels are traced by Triton, not typed Python: no annotation would be true of their arguments.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .triton_launch import check_device

#: Vocabulary entries a program of the search holds.
TILE = 4096
#: Entries that the one program of a filtered row reads at a time.
FLOOR_TILE = 4096


@triton.jit
def scale_logits(logits, temperature):
    """Divide by the temperature, correctly rounded; greedy rows stay, and -0.0 becomes 0.0."""
    heat = tl.where(temperature == 0, 1.0, temperature)
    return tl.div_rn(logits, tl.zeros_like(logits) + heat) + 0.0


@triton.jit
def order_key(values):
    """Map float32 to uint32 so that the order stays: compare bits instead of numbers."""
    bits = values.to(tl.uint32, bitcast=True)
    return tl.where(bits >> 31 == 1, bits ^ 0xFFFFFFFF, bits | 0x80000000)


@triton.jit
def scramble(block):
    """MurmurHash3's treatment of one 32-bit block before it enters the state."""
    block = block * 0xCC9E2D51
    return ((block << 15) | (block >> 17)) * 0x1B873593


@triton.jit
def advance(state, scrambled):
    """Take one scrambled block into a MurmurHash3 state."""
    state = state ^ scrambled
    return ((state << 13) | (state >> 19)) * 5 + 0xE6546B64


@triton.jit
def gumbel_noise(seed, position, token_ids):
    """Gumbel noise [tile] float32 of one row, a pure function of (seed, position, token id).

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
    # log1p(-u) from log: what 1 - u loses by rounding is divided out again (Goldberg 1991, th. 4).
    rest = 1.0 - uniform
    lost = 1.0 - rest
    exact = lost == 0
    exponential = -tl.log(rest) * tl.div_rn(uniform, tl.where(exact, 1.0, lost))
    return -tl.log(tl.where(exact, uniform, exponential))


@triton.jit
def measure(
    row, temperature, trial, floor, top, vocab_size, MASS: tl.constexpr, TILE: tl.constexpr
):
    """Count (or, with MASS, weigh relative to `top`) the entries whose key reaches each trial.

    Entries under `floor` are left out. `trial` is [4] uint32; returns float32 [4].
    """
    measured = tl.zeros([4], tl.float32)
    for start in range(0, vocab_size, TILE):
        columns = start + tl.arange(0, TILE)
        values = tl.load(row + columns, columns < vocab_size, float("-inf"))
        scaled = scale_logits(values, temperature)
        keys = order_key(scaled)
        weights = tl.exp(scaled - top) if MASS else tl.full([TILE], 1.0, tl.float32)
        weights = tl.where((keys >= floor) & (columns < vocab_size), weights, 0.0)
        reached = keys[None, :] >= trial[:, None]
        measured += tl.sum(tl.where(reached, weights[None, :], 0.0), 1)
    return measured


@triton.jit
def find_floor(
    row, temperature, wanted, floor, top, vocab_size, MASS: tl.constexpr, TILE: tl.constexpr
):
    """Largest key such that the entries from it up reach `wanted` in number or in mass.

    Two bits a pass over the row, which lies in the second-level cache after the first.
    """
    found = (floor * 0).to(tl.uint32)
    steps = tl.arange(0, 4)
    for done in range(16):
        shift = 30 - 2 * done
        trial = found + (steps.to(tl.uint32) << shift)
        measured = measure(row, temperature, trial, floor, top, vocab_size, MASS, TILE)
        # Measures fall as trials rise, and step 0 is known to reach what is wanted.
        step = tl.max(tl.where((measured >= wanted) | (steps == 0), steps, 0), 0)
        found = found + (step.to(tl.uint32) << shift)
    return found


@triton.jit
def sample_floor_kernel(
    floors,  # uint32 as int32 [num_rows]
    logits,  # float32 [num_rows, vocab_size], rows row_stride apart
    temperature,  # float32 [num_rows]
    top_k,  # int64 [num_rows]
    top_p,  # float32 [num_rows]
    row_stride,
    vocab_size,
    TILE: tl.constexpr,
):
    """Program r: the key of the smallest value that row r keeps, 0 where it keeps all."""
    index = tl.program_id(0)
    heat = tl.load(temperature + index)
    k = tl.load(top_k + index)
    p = tl.load(top_p + index)
    by_count = (heat > 0) & (k > 0) & (k < vocab_size)
    by_mass = (heat > 0) & (p < 1)
    row = logits + index.to(tl.int64) * row_stride
    floor = (index * 0).to(tl.uint32)
    if by_count:
        floor = find_floor(row, heat, k.to(tl.float32), floor, 0.0, vocab_size, False, TILE)
    if by_mass:
        top = float("-inf")
        for start in range(0, vocab_size, TILE):
            columns = start + tl.arange(0, TILE)
            values = tl.load(row + columns, columns < vocab_size, float("-inf"))
            top = tl.maximum(top, tl.max(scale_logits(values, heat), 0))
        zero = tl.zeros([4], tl.uint32)
        total = tl.max(measure(row, heat, zero, floor, top, vocab_size, True, TILE), 0)
        mass_floor = find_floor(row, heat, p * total, floor, top, vocab_size, True, TILE)
        floor = tl.where(mass_floor > floor, mass_floor, floor)
    tl.store(floors + index, floor.to(tl.int32, bitcast=True))


@triton.jit
def sample_tile_kernel(
    best_scores,  # float32 [num_rows, num_tiles]
    best_ids,  # int32 [num_rows, num_tiles]
    floors,  # uint32 as int32 [num_rows]
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
        floor = tl.load(floors + index).to(tl.uint32, bitcast=True)
        noise = gumbel_noise(tl.load(seeds + index), tl.load(positions + index), columns)
        scores = tl.where(order_key(scaled) >= floor, scaled + noise, float("-inf"))
    scores = tl.where(scores == scores, scores, float("-inf"))  # NaN must not decide the index
    best, where = tl.max(scores, 0, return_indices=True, return_indices_tie_break_left=True)
    slot = index * tl.num_programs(1) + tile
    tl.store(best_scores + slot, best)
    tl.store(best_ids + slot, tile * TILE + where)


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
    _, where = tl.max(scores, 0, return_indices=True, return_indices_tie_break_left=True)
    tl.store(token_ids + index, tl.load(best_ids + index * num_tiles + where).to(tl.int64))


def sample_triton(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    seeds: Tensor,
    positions: Tensor,
) -> Tensor:
    """Same arguments and result as `batchmill.kernels.sample.sample`."""
    check_device("sample", sample_tile_kernel, logits)
    num_rows, vocab_size = logits.shape
    token_ids = torch.empty(num_rows, dtype=torch.int64, device=logits.device)
    if num_rows == 0:
        return token_ids
    num_tiles = triton.cdiv(vocab_size, TILE)
    floors = torch.empty(num_rows, dtype=torch.int32, device=logits.device)
    best_scores = torch.empty((num_rows, num_tiles), dtype=torch.float32, device=logits.device)
    best_ids = torch.empty((num_rows, num_tiles), dtype=torch.int32, device=logits.device)
    stride = logits.stride(0)
    sample_floor_kernel[(num_rows,)](
        floors, logits, temperature, top_k, top_p, stride, vocab_size,
        TILE=FLOOR_TILE, num_warps=16, enable_fp_fusion=False,
    )  # fmt: skip
    sample_tile_kernel[(num_rows, num_tiles)](
        best_scores, best_ids, floors, logits, temperature, seeds, positions, stride, vocab_size,
        TILE=TILE, num_warps=8, enable_fp_fusion=False,
    )  # fmt: skip
    sample_pick_kernel[(num_rows,)](
        token_ids, best_scores, best_ids, num_tiles,
        BLOCK=triton.next_power_of_2(num_tiles), num_warps=1, enable_fp_fusion=False,
    )  # fmt: skip
    return token_ids
