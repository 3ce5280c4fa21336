"""Triton backend of `sample`: no sort, no synchronisation, and no random state.

Rows with min-p, top-k or top-p first get a floor, the smallest logit that they keep
(`sample_floor.py`); other rows leave that kernel at once. Then each tile of the vocabulary is
searched for the largest logit plus noise, and a small kernel picks the best tile. The search also
finds numbers that are not finite, so that nothing else has to read the logits.

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
#: Entries of a tile that are scored exactly at a time: one per thread.
CHUNK = 256
#: Largest error of rough noise, and by how much a rough score has to exceed another one so that the
#: exact one does too.
ROUGH_ERROR = 0.045
MARGIN = tl.constexpr(0.1)
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
def row_state(seed, position):
    """Return the MurmurHash3 state of a row, to which each token id is added."""
    state = advance(seed.to(tl.uint32) * 0, scramble(seed.to(tl.uint32)))
    state = advance(state, scramble((seed >> 32).to(tl.uint32)))
    return advance(state, scramble(position.to(tl.uint32)))


@triton.jit
def uniform_noise(state, token_ids):
    """Return a number above 0 and below 1 per token of a row with this state, float32.

    Source: MurmurHash3_x86_32, Austin Appleby, public domain.
    """
    state = advance(state, scramble(token_ids.to(tl.uint32))) ^ 16
    state = (state ^ (state >> 16)) * 0x85EBCA6B
    state = (state ^ (state >> 13)) * 0xC2B2AE35
    state = state ^ (state >> 16)
    whole = (state & 0x7FFFFFFF).to(tl.int32).to(tl.float32)
    # Rounded once, like (whole + 0.5) * 2**-31: a product with a power of two is exact.
    return tl.minimum(tl.fma(whole, 2.0**-31, 2.0**-32), 1 - 2.0**-24)


@triton.jit
def gumbel_noise(state, token_ids):
    """Return the Gumbel noise of a row's tokens, correct to a few last places, float32."""
    uniform = uniform_noise(state, token_ids)
    # log1p(-u) by log: the rounding error of 1 - u is divided out again (Goldberg 1991, th. 4).
    rest = 1.0 - uniform
    lost = 1.0 - rest
    exact = lost == 0
    exponential = -tl.log(rest) * tl.div_rn(uniform, tl.where(exact, 1.0, lost))
    return -tl.log(tl.where(exact, uniform, exponential))


@triton.jit
def rough_log2(values):
    """Return the binary logarithms of positive numbers, with an error of 0.005 at most.

    The bits of a float, as an integer, are its logarithm but for a parabola in its mantissa.
    """
    bits = values.to(tl.int32, bitcast=True)
    mantissa = ((bits & 0x7FFFFF) | 0x3F800000).to(tl.float32, bitcast=True)  # 1 to 2
    parabola = tl.fma(tl.fma(mantissa, -0.3448486, 1.0246674), mantissa, -127.6748796)
    return tl.fma(bits.to(tl.float32), 2.0**-23, parabola)


@triton.jit
def rough_noise(state, token_ids):
    """Return the Gumbel noise of a row's tokens, with an error of `ROUGH_ERROR` at most."""
    uniform = uniform_noise(state, token_ids)
    # -log2(1 - u): a polynomial where the logarithm of a number near 1 has no correct digits.
    small = uniform * tl.fma(uniform, 0.8669329, 1.4379067)
    exponential = tl.where(uniform < 0.25, small, -rough_log2(1.0 - uniform))
    # ln 2 times minus its logarithm, without the parabola: 0.03 more or less.
    bits = exponential.to(tl.int32, bitcast=True).to(tl.float32)
    return tl.fma(bits, -0.6931472 * 2.0**-23, 88.366)


@triton.jit
def either(left, right):
    """Combine two sets of bits."""
    return left | right


@triton.jit
def chunks_to_check(values, scores, CHUNK: tl.constexpr, TILE: tl.constexpr):
    """Return the set of chunks of a tile that may hold the best token, one bit each, int32.

    None may if all scores are -inf. The next bit says that a value is NaN or +inf.
    """
    best = tl.max(scores, 0)
    # Two scores are wrong by `ROUGH_ERROR` and by the rounding of a scaled logit, which is at most
    # about as large as the best score or as noise.
    least = best - (MARGIN + 2.0**-20 * tl.minimum(tl.abs(best), 3e38))
    least = tl.where(best == float("-inf"), float("inf"), least)
    bit = tl.full([TILE], 1, tl.int32) << (tl.arange(0, TILE) // CHUNK)
    broken = tl.where(values < float("inf"), 0, 1 << TILE // CHUNK)
    return tl.reduce(tl.where(scores < least, 0, bit) | broken, 0, either)


@triton.jit
def sample_tile_kernel(
    best_scores,  # float32 [num_rows, num_tiles]; NaN if the tile has NaN or +inf
    best_ids,  # int32 [num_rows, num_tiles]
    floors,  # float32 [num_rows]
    logits,  # float32 [num_rows, vocab_size], rows row_stride apart
    temperature,  # float32 [num_rows]
    seeds,  # int64 [num_rows]
    positions,  # int64 [num_rows]
    row_stride,
    vocab_size,
    TILE: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Program (r, t): the best kept token of tile t of row r; the lowest id among equals.

    Exact noise takes about 130 instructions per token. So all tokens get a rough score, and only
    those chunks of the tile are scored exactly in which a token is close to the best rough score:
    nearly always one.
    """
    index = tl.program_id(0)
    tile = tl.program_id(1)
    row = logits + index.to(tl.int64) * row_stride
    first = tile * TILE
    columns = first + tl.arange(0, TILE)
    values = tl.load(row + columns, columns < vocab_size, float("-inf"))
    heat = tl.load(temperature + index)
    floor = tl.load(floors + index)
    state = row_state(tl.load(seeds + index), tl.load(positions + index))
    if heat > 0:
        per_heat = tl.minimum(1.0 / heat, 3e38)  # finite: 0 times infinity would be NaN
        scores = tl.fma(values, per_heat, rough_noise(state, columns))
    else:
        scores = values
    scores = tl.where(values >= floor, scores, float("-inf"))  # NaN is not kept
    found = chunks_to_check(values, scores, CHUNK, TILE)
    is_broken = found >= 1 << TILE // CHUNK
    chunks = found & ((1 << TILE // CHUNK) - 1)
    best = tl.full([CHUNK], float("-inf"), tl.float32)
    best_id = first + tl.arange(0, CHUNK)
    while chunks != 0:
        bit = chunks & -chunks  # the first one's
        chunks = chunks ^ bit
        chunk = (bit.to(tl.float32).to(tl.int32, bitcast=True) >> 23) - 127  # its number
        ids = first + chunk * CHUNK + tl.arange(0, CHUNK)
        again = tl.load(row + ids, ids < vocab_size, float("-inf"))
        exact = scale_logits(again, heat)
        exact = tl.where(heat > 0, exact + gumbel_noise(state, ids), exact)
        is_better = (again >= floor) & (exact > best)
        best = tl.where(is_better, exact, best)
        best_id = tl.where(is_better, ids, best_id)
    highest = tl.max(best, 0)
    slot = index * tl.num_programs(1) + tile
    tl.store(best_scores + slot, tl.where(is_broken, float("nan"), highest))
    tl.store(best_ids + slot, tl.min(tl.where(best == highest, best_id, 0x7FFFFFFF), 0))


@triton.jit
def sample_pick_kernel(
    token_ids,  # int64 [num_rows]
    are_finite,  # int32 [num_rows]: 1, or 0 if the row's largest logit is not a number
    best_scores,  # float32 [num_rows, num_tiles]
    best_ids,  # int32 [num_rows, num_tiles]
    num_tiles,
    BLOCK: tl.constexpr,
):
    """Program r: the best of row r's tiles, the first among equals."""
    index = tl.program_id(0)
    tiles = tl.arange(0, BLOCK)
    scores = tl.load(best_scores + index * num_tiles + tiles, tiles < num_tiles, float("-inf"))
    is_broken = tl.max(tl.where(scores == scores, 0, 1), 0) != 0
    scores = tl.where(scores == scores, scores, float("-inf"))  # NaN must not decide the index
    highest, tile = tl.max(scores, 0, return_indices=True, return_indices_tie_break_left=True)
    tl.store(token_ids + index, tl.load(best_ids + index * num_tiles + tile).to(tl.int64))
    tl.store(are_finite + index, tl.where(is_broken, 0, (highest > float("-inf")).to(tl.int32)))


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
    return sample_and_check_triton(logits, temperature, top_k, top_p, min_p_gaps, seeds, positions)[
        0
    ]


def sample_and_check_triton(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p_gaps: Tensor,
    seeds: Tensor,
    positions: Tensor,
) -> tuple[Tensor, Tensor]:
    """Compute `sample_and_check`."""
    check_device("sample", sample_tile_kernel, logits)
    num_rows, vocab_size = logits.shape
    token_ids = torch.empty(num_rows, dtype=torch.int64, device=logits.device)
    are_finite = torch.empty(num_rows, dtype=torch.int32, device=logits.device)
    if num_rows == 0:
        return token_ids, are_finite.bool()
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
        TILE=TILE, CHUNK=CHUNK, num_warps=8, enable_fp_fusion=False,
    )  # fmt: skip
    _launch_pick(
        (num_rows,), (token_ids, are_finite, best_scores, best_ids), (num_tiles,),
        BLOCK=next_power_of_2(num_tiles), num_warps=1, enable_fp_fusion=False,
    )  # fmt: skip
    return token_ids, are_finite.bool()


_launch_floor = CachedLaunch(sample_floor_kernel)
_launch_tile = CachedLaunch(sample_tile_kernel)
_launch_pick = CachedLaunch(sample_pick_kernel)
