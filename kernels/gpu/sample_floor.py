"""Find the smallest logit that min-p, top-k and top-p keep in a row, without a sort.

Values are compared by integer keys that preserve their order, and the floor is searched for in a
bracket of keys: each pass over the row counts (or weighs) the entries that reach four trial keys,
and continues with the part that contains the floor. The first trials are distances from the largest
logit, which mostly leave a few thousand tokens at once; these are gathered, and the rest of the
search runs in registers. If they leave more, as random numbers do, more passes follow: 17 at most.

The cost is the passes over a row: 256 rows of 151,936 logits do not fit in the second-level cache,
and a row is read by a single multiprocessor.

Source: radix selection, Alabi et al. 2012, section 4; narrowing by pivots and then finishing on
few candidates as in Dr.Top-k, Gaihre et al. 2021.
"""

# Triton traces its kernels: no Python annotation would be true of their arguments.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
#: The key of -inf: tokens with this key or a smaller one cannot be sampled.
KEY_OF_NOTHING = tl.constexpr(0x007FFFFF)
#: Largest factor on differences of logits: 0 times infinity would be NaN, and this is cold enough.
MAX_PER_HEAT = tl.constexpr(1e30)
#: Most candidates for the search in registers; a row of the scratch buffer.
MAX_CANDIDATES = 4096
#: Tiles of logits in flight: a multiprocessor runs one or two programs, which would otherwise wait
#: for memory.
STAGES = tl.constexpr(4)


@triton.jit
def scale_logits(logits, temperature):
    """Divide by the temperature, correctly rounded; greedy rows are kept, -0.0 becomes 0.0."""
    heat = tl.where(temperature == 0, 1.0, temperature)
    return tl.div_rn(logits, tl.zeros_like(logits) + heat) + 0.0


@triton.jit
def order_key(values):
    """Map float32 to uint32 in the same order, to compare bits instead of numbers."""
    bits = values.to(tl.uint32, bitcast=True)
    return tl.where(bits >> 31 == 1, bits ^ 0xFFFFFFFF, bits | 0x80000000)


@triton.jit
def value_of(key):
    """Return the float32 that has this key."""
    bits = tl.where(key >> 31 == 1, key ^ 0x80000000, key ^ 0xFFFFFFFF)
    return bits.to(tl.uint32).to(tl.float32, bitcast=True)


@triton.jit
def load_logits(row, start, vocab_size, TILE: tl.constexpr):
    """Load a tile of logits and its mask; NaN becomes -inf, and -0.0 becomes 0.0."""
    columns = start + tl.arange(0, TILE)
    listed = columns < vocab_size
    values = tl.load(row + columns, listed, float("-inf")) + 0.0
    return tl.where(values == values, values, float("-inf")), listed


@triton.jit
def finite_or_zero(top):
    """Return a maximum that is safe to subtract: -inf - -inf would be NaN."""
    return tl.where(top == float("-inf"), 0.0, top)


@triton.jit
def top_and_total(row, per_heat, vocab_size, TILE: tl.constexpr):
    """Return the largest logit, and the row's mass relative to it."""
    top = tl.full([TILE], float("-inf"), tl.float32)
    total = tl.zeros([TILE], tl.float32)
    for start in tl.range(0, vocab_size, TILE, num_stages=STAGES):
        values, _ = load_logits(row, start, vocab_size, TILE)
        higher = tl.maximum(top, values)
        shift = finite_or_zero(higher)
        total = total * tl.exp2((top - shift) * per_heat)
        total += tl.exp2((values - shift) * per_heat)
        top = higher
    highest = tl.max(top, 0)
    return highest, tl.sum(total * tl.exp2((top - finite_or_zero(highest)) * per_heat), 0)


@triton.jit
def measure(row, trial, top, per_heat, vocab_size, MASS: tl.constexpr, TILE: tl.constexpr):
    """Count the entries that reach each of four trials, and with MASS weigh them; float32 [4]."""
    counts = tl.zeros([4, TILE], tl.float32)
    masses = tl.zeros([4, TILE], tl.float32)
    for start in tl.range(0, vocab_size, TILE, num_stages=STAGES):
        values, listed = load_logits(row, start, vocab_size, TILE)
        reached = (order_key(values)[None, :] >= trial[:, None]) & listed[None, :]
        counts += tl.where(reached, 1.0, 0.0)
        if MASS:
            weights = tl.exp2((values - top) * per_heat)
            masses += tl.where(reached, weights[None, :], 0.0)
    count = tl.sum(counts, 1)
    mass = count
    if MASS:
        mass = tl.sum(masses, 1)
    return count, mass


@triton.jit
def cut(low, high):
    """Return four trials, ascending from `low`, that divide [low, high) by four."""
    quarter = tl.maximum((high - low) >> 2, 1)
    return low + tl.arange(0, 4).to(tl.uint32) * quarter


@triton.jit
def choose(trial, reaches, high):
    """Return the part of the bracket that holds the floor: number, first key, key after the last.

    The measure falls as trials rise, and the lowest trial is known to reach the wanted amount.
    """
    steps = tl.arange(0, 4)
    step = tl.max(tl.where(reaches | (steps == 0), steps, 0), 0)
    low = tl.max(tl.where(steps == step, trial, 0), 0)
    above = tl.min(tl.where(steps > step, trial, high), 0)
    return step, low.to(tl.uint32), tl.minimum(above, high).to(tl.uint32)


@triton.jit
def narrow(
    row, low, high, num, top, heat, per_heat, wanted, vocab_size,
    MOST: tl.constexpr, MASS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Narrow [low, high) until at most `MOST` entries reach `low`, or the floor is `low`.

    Returns:
        The bracket, and how many entries reach its first key.
    """
    steps = tl.arange(0, 4)
    gaps = tl.where(steps == 1, 30.0, tl.where(steps == 2, 12.0, 6.0))
    trial = tl.where(steps == 0, low, tl.maximum(order_key(top - gaps * heat + 0.0), low))
    while (num > MOST) & (high - low > 1):
        count, mass = measure(row, trial, top, per_heat, vocab_size, MASS, TILE)
        step, low, high = choose(trial, mass >= wanted, high)
        num = tl.sum(tl.where(steps == step, count, 0.0), 0)
        trial = cut(low, high)
    return low, high, num


@triton.jit
def gather(candidates, row, low, vocab_size, TILE: tl.constexpr):
    """Store the entries that reach `low` one after another."""
    num = 0
    for start in tl.range(0, vocab_size, TILE, num_stages=STAGES):
        values, listed = load_logits(row, start, vocab_size, TILE)
        taken = (order_key(values) >= low) & listed
        places = num + tl.cumsum(taken.to(tl.int32), 0) - 1
        tl.store(candidates + places, values, taken)
        num += tl.sum(taken.to(tl.int32), 0)
    tl.debug_barrier()  # other threads read them


@triton.jit
def refine(keys, weights, low, high, wanted):
    """Find the floor in [low, high) among candidates in registers."""
    while high - low > 1:
        trial = cut(low, high)
        reached = keys[None, :] >= trial[:, None]
        measured = tl.sum(tl.where(reached, weights[None, :], 0.0), 1)
        _, low, high = choose(trial, measured >= wanted, high)
    return low


@triton.jit
def first_tie(low, heat):
    """Return the first key whose scaled value equals that of `low`: tokens that tie are kept."""
    wanted = order_key(scale_logits(value_of(low), heat))
    below = (low * 0 + KEY_OF_NOTHING).to(tl.uint32)  # the last key known to be scaled to less
    while low - below > 1:
        middle = below + ((low - below) >> 1)
        reaches = order_key(scale_logits(value_of(middle), heat)) >= wanted
        low, below = tl.where(reaches, middle, low), tl.where(reaches, below, middle)
    return low


@triton.jit
def sample_floor_kernel(
    floors,  # float32 [num_rows]
    candidates,  # float32 [num_rows, MOST], scratch
    logits,  # float32 [num_rows, vocab_size], rows row_stride apart
    temperature,  # float32 [num_rows]
    top_k,  # int64 [num_rows]
    top_p,  # float32 [num_rows]
    min_p_gaps,  # float32 [num_rows]
    row_stride,
    vocab_size,
    MOST: tl.constexpr,
    TILE: tl.constexpr,
):
    """Program r: the smallest logit that row r keeps, -inf if it keeps all.

    Logits are compared unscaled, because division by the temperature keeps their order. Tokens that
    tie with the last one of top-k and top-p only after scaling are kept as well.
    """
    index = tl.program_id(0)
    heat = tl.load(temperature + index)
    k = tl.load(top_k + index)
    p = tl.load(top_p + index)
    by_count = (heat > 0) & (k > 0) & (k < vocab_size)
    by_mass = (heat > 0) & (p < 1)
    gap = tl.load(min_p_gaps + index)
    by_gap = (heat > 0) & (gap > float("-inf"))
    floor = tl.minimum(gap, float("-inf"))
    if by_count | by_mass | by_gap:
        row = logits + index.to(tl.int64) * row_stride
        row_candidates = candidates + index.to(tl.int64) * MOST
        per_heat = tl.minimum(1.0 / heat * LOG2_E, MAX_PER_HEAT)
        top, total = top_and_total(row, per_heat, vocab_size, TILE)
        nothing = (index * 0).to(tl.uint32)
        low, num = nothing, vocab_size.to(tl.float32)
        end = order_key(top) + 1
        high = end
        least = nothing
        if by_gap:
            floor = top + gap + 0.0
            least = order_key(floor)
        top = finite_or_zero(top)
        if by_count:
            low, high, num = narrow(
                row, low, high, num, top, heat, per_heat, k.to(tl.float32), vocab_size,
                MOST, False, TILE,
            )  # fmt: skip
        elif by_mass:
            if by_gap:
                low = least
                counts, kept = measure(row, cut(low, end), top, per_heat, vocab_size, True, TILE)
                num, total = tl.max(counts, 0), tl.max(kept, 0)
            low, high, num = narrow(
                row, low, high, num, top, heat, per_heat, p * total, vocab_size, MOST, True, TILE
            )
        if (by_count | by_mass) & (num <= MOST):
            gather(row_candidates, row, low, vocab_size, TILE)
            places = tl.arange(0, MOST)
            held = places < num.to(tl.int32)
            values = tl.load(row_candidates + places, held, float("-inf"))
            keys = order_key(values)
            if by_count:
                low = refine(keys, tl.where(held, 1.0, 0.0), low, high, k.to(tl.float32))
                low = tl.maximum(low, least)
                high = end
            if by_mass:
                weights = tl.where(held, tl.exp2((values - top) * per_heat), 0.0)
                kept = tl.sum(tl.where(keys >= low, weights, 0.0), 0)
                low = refine(keys, weights, low, high, p * tl.where(by_count, kept, total))
        elif by_count & by_mass:
            # More candidates than fit: a large k, or many ties with the last kept token.
            low = tl.maximum(low, least)
            _, kept = measure(row, cut(low, end), top, per_heat, vocab_size, True, TILE)
            low, high, num = narrow(
                row, low, end, num, top, heat, per_heat, p * tl.max(kept, 0), vocab_size,
                0, True, TILE,
            )  # fmt: skip
        if (by_count | by_mass) & (low > KEY_OF_NOTHING):
            floor = tl.maximum(floor, value_of(first_tie(low, heat)))
    tl.store(floors + index, floor)
