"""Functions shared by the Triton attention kernels: reading a paged cache tile by tile.

The block ids of the next tile are loaded while this tile is computed, and carried into the next
iteration. An id that is loaded and used in the same iteration puts a dependent load before the keys
and values. The compiler then keeps one shared-memory buffer for them instead of two or three, and
copies no longer overlap with arithmetic.
"""

# Triton traces its kernels: no Python annotation would be true of their arguments.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls

from __future__ import annotations

import triton
import triton.language as tl

#: exp2 is one instruction, exp is two: scores are scaled by log2(e) once, on the host.
LOG2_E = 1.4426950408889634


@triton.jit
def load_block_ids(
    table_row,  # int32 pointer to one sequence's row of the block table
    first_token,  # first token of the tile
    num_tokens,  # tokens past it have no block; their ids are not read
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
):
    """Load the block ids of one tile: a scalar if the tile lies in one block, else one per token.

    They are int64, because `block_id * block_stride` passes 2**31 in a cache of a few GiB.
    """
    if BLOCK_SIZE % TILE == 0:
        block_ids = tl.load(table_row + first_token // BLOCK_SIZE, first_token < num_tokens, 0)
    else:
        # Clamped, not masked: after a masked load ptxas lets every wgmma wait for the one before.
        tokens = tl.minimum(first_token + tl.arange(0, TILE), num_tokens - 1)
        block_ids = tl.load(table_row + tokens // BLOCK_SIZE)
    return block_ids.to(tl.int64)


@triton.jit
def for_cache(query, cache):
    """Return the query in the number format in which it is multiplied with this cache's tiles.

    An eight-bit cache is multiplied in float16: e4m3 becomes float16 by one instruction for two
    numbers, and bfloat16 by several for each. Keys and values are exact in float16, and attention's
    weights have three bits more than in bfloat16. A query beyond float16's range is clamped to it.
    """
    if cache.dtype.element_ty == tl.float8e4nv and query.dtype == tl.bfloat16:
        query = tl.clamp(query.to(tl.float32), -65504.0, 65504.0).to(tl.float16)
    return query


@triton.jit
def tile_offsets(
    block_ids,
    first_token,
    kv_head,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Return offsets [TILE, BLOCK_D] of a tile in a cache [blocks, slots, kv heads, head dim]."""
    slots = (first_token + tl.arange(0, TILE)) % BLOCK_SIZE
    rows = (block_ids * BLOCK_SIZE + slots) * NUM_KV_HEADS + kv_head  # [TILE] int64
    return rows[:, None] * HEAD_DIM + tl.arange(0, BLOCK_D)[None, :]


@triton.jit
def load_tile(
    cache,
    offsets,
    tokens,
    num_tokens,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Load a [TILE, BLOCK_D] tile of keys or values, zero past `num_tokens` and `HEAD_DIM`.

    Unused slots may hold anything, NaN included, so they are never loaded: 0 * NaN is NaN.
    """
    if MASKED and HEAD_DIM != BLOCK_D:
        mask = (tokens < num_tokens)[:, None] & (tl.arange(0, BLOCK_D) < HEAD_DIM)[None, :]
        tile = tl.load(cache + offsets, mask, 0.0)
    elif MASKED:
        tile = tl.load(cache + offsets, (tokens < num_tokens)[:, None], 0.0)
    elif HEAD_DIM != BLOCK_D:
        tile = tl.load(cache + offsets, (tl.arange(0, BLOCK_D) < HEAD_DIM)[None, :], 0.0)
    else:
        tile = tl.load(cache + offsets)
    return tile


@triton.jit
def load_sinks(sinks, heads, mask):
    """Load the sinks of heads, scaled as scores are: for powers of two."""
    return tl.load(sinks + heads, mask, 0.0).to(tl.float32) * 1.4426950408889634


@triton.jit
def normaliser(row_sum, row_max, sink):
    """Return the factor on sums over keys that makes their weights and the sink's add up to 1.

    The larger exponent becomes 0, so that neither power of two overflows.
    """
    top = tl.maximum(row_max, sink)
    shrink = tl.exp2(row_max - top)
    return shrink / (row_sum * shrink + tl.exp2(sink - top))


@triton.jit
def matmul(a, b, acc, UPCAST: tl.constexpr, PRECISION: tl.constexpr):
    """Return acc + a @ b in float32; UPCAST is for the interpreter, whose bf16 dot is wrong."""
    if UPCAST:
        result = tl.dot(a.to(tl.float32), b.to(tl.float32), acc, input_precision=PRECISION)
    else:
        result = tl.dot(a, b, acc, input_precision=PRECISION)
    return result


@triton.jit
def softmax_step(scores, visible, row_max, row_sum, MASKED: tl.constexpr):
    """Compute a step of online softmax in base 2: this tile's weights, running maximum and sum.

    Args:
        scores: [rows, TILE] float32, already scaled by log2(e).
        visible: [rows, TILE] bool, read if `MASKED`.
        row_max: [rows] float32, -inf at the start.
        row_sum: [rows] float32.
        MASKED: Whether a row may see no key of this tile, or of all tiles so far.

    Returns:
        The weights, the factor for earlier sums, the maximum, the sum.

    Source: FlashAttention-2, Dao 2023, section 3.1.
    """
    if MASKED:
        scores = tl.where(visible, scores, float("-inf"))
    new_max = tl.maximum(row_max, tl.max(scores, 1))
    # For a row that has seen no key yet, -inf - -inf would be NaN.
    shift = tl.where(new_max == float("-inf"), 0.0, new_max) if MASKED else new_max
    weights = tl.exp2(scores - shift[:, None])
    shrink = tl.exp2(row_max - shift)
    return weights, shrink, new_max, row_sum * shrink + tl.sum(weights, 1)
