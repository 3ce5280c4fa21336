"""Triton backends of `route_experts` and `combine_experts`: three launches for a mixture.

The first scores a token's experts, the second counts and orders the rows of each expert, and the
third adds the results. None of them sorts: an expert's program reads all choices and finds its own,
a few kilobytes that stay in the cache.
"""

# Triton traces its kernels: no Python annotation would be true of their arguments.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from batchmill.kernels.reference.experts import Routing

from .launch import CachedLaunch, check_device, next_power_of_2

#: Choices that an expert's program reads at a time.
TILE = 1024
#: Columns of a token's result per program.
BLOCK = 512


@triton.jit
def route_experts_kernel(
    shares,  # float32 [num_tokens, NUM_CHOSEN]
    chosen,  # int32 [num_tokens, NUM_CHOSEN]
    logits,  # [num_tokens, num_experts], contiguous
    num_experts,
    NUM_CHOSEN: tl.constexpr,
    NORMALISE: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCK_CHOSEN: tl.constexpr,
):
    """Program t: the experts of token t, by falling share; the lowest number among equals."""
    token = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    row = logits + token * num_experts
    listed = columns < num_experts
    values = tl.load(row + columns, listed, float("-inf")).to(tl.float32)
    # NaN makes all shares NaN, but must not decide a number, which addresses memory.
    left = tl.where(values == values, values, float("-inf"))
    top = tl.max(left, 0)
    top = tl.where(top == float("-inf"), 0.0, top)  # -inf - -inf would be NaN
    total = tl.sum(tl.where(listed, tl.exp(values - top), 0.0), 0)
    places = tl.arange(0, BLOCK_CHOSEN)
    numbers = tl.zeros([BLOCK_CHOSEN], tl.int32)
    largest = tl.full([BLOCK_CHOSEN], float("-inf"), tl.float32)
    for place in tl.static_range(NUM_CHOSEN):
        best, number = tl.max(left, 0, return_indices=True, return_indices_tie_break_left=True)
        numbers = tl.where(places == place, number, numbers)
        largest = tl.where(places == place, best, largest)
        left = tl.where(columns == number, float("-inf"), left)
    weights = tl.exp(largest - top) / total
    if NORMALISE:
        weights = weights / tl.sum(weights, 0)
    held = places < NUM_CHOSEN
    tl.store(shares + token * NUM_CHOSEN + places, weights, held)
    tl.store(chosen + token * NUM_CHOSEN + places, numbers, held)


@triton.jit(do_not_specialize=["num_choices"])
def order_experts_kernel(
    rows,  # int64 [num_choices]
    places,  # int64 [num_choices]
    ends,  # int32 [num_experts]
    chosen,  # int32 [num_choices]
    num_choices,
    NUM_CHOSEN: tl.constexpr,
    TILE: tl.constexpr,
):
    """Program e: the rows of expert e, in the order of their tokens."""
    expert = tl.program_id(0)
    before = 0
    own = 0
    for start in range(0, num_choices, TILE):
        choices = start + tl.arange(0, TILE)
        numbers = tl.load(chosen + choices, choices < num_choices, 0x7FFFFFFF)
        before += tl.sum((numbers < expert).to(tl.int32), 0)
        own += tl.sum((numbers == expert).to(tl.int32), 0)
    tl.store(ends + expert, before + own)
    if own > 0:
        for start in range(0, num_choices, TILE):
            choices = start + tl.arange(0, TILE)
            numbers = tl.load(chosen + choices, choices < num_choices, 0x7FFFFFFF)
            is_own = (numbers == expert).to(tl.int32)
            place = before + tl.cumsum(is_own, 0) - 1
            tl.store(rows + place, (choices // NUM_CHOSEN).to(tl.int64), is_own == 1)
            tl.store(places + choices, place.to(tl.int64), is_own == 1)
            before += tl.sum(is_own, 0)


@triton.jit
def combine_experts_kernel(
    out,  # [num_tokens, hidden]
    computed,  # [num_tokens * NUM_CHOSEN, hidden]
    places,  # int64 [num_tokens, NUM_CHOSEN]
    shares,  # float32 [num_tokens, NUM_CHOSEN]
    hidden,
    NUM_CHOSEN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Program (t, b): BLOCK columns of token t, added in float32 and rounded once."""
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < hidden
    total = tl.zeros([BLOCK], tl.float32)
    for number in tl.static_range(NUM_CHOSEN):
        place = tl.load(places + token * NUM_CHOSEN + number)
        share = tl.load(shares + token * NUM_CHOSEN + number)
        total += tl.load(computed + place * hidden + columns, mask, 0.0).to(tl.float32) * share
    tl.store(out + token * hidden + columns, total.to(out.dtype.element_ty), mask)


def route_experts_triton(logits: Tensor, num_chosen: int, normalise: bool) -> Routing:
    """Compute `route_experts`."""
    check_device("route_experts", route_experts_kernel, logits)
    (num_tokens, num_experts), device = logits.shape, logits.device
    size = (num_tokens, num_chosen)
    chosen = torch.empty(size, dtype=torch.int32, device=device)
    routing = Routing(
        shares=torch.empty(size, dtype=torch.float32, device=device),
        rows=torch.empty(num_tokens * num_chosen, dtype=torch.int64, device=device),
        places=torch.empty(size, dtype=torch.int64, device=device),
        ends=torch.empty(num_experts, dtype=torch.int32, device=device),
    )
    if num_tokens:
        _launch_route(
            (num_tokens,), (routing.shares, chosen, logits.contiguous()), (num_experts,),
            NUM_CHOSEN=num_chosen, NORMALISE=normalise, BLOCK=next_power_of_2(num_experts),
            BLOCK_CHOSEN=next_power_of_2(num_chosen), num_warps=1,
        )  # fmt: skip
    _launch_order(
        (num_experts,), (routing.rows, routing.places, routing.ends, chosen),
        (num_tokens * num_chosen,),
        NUM_CHOSEN=num_chosen, TILE=TILE, num_warps=8,
    )  # fmt: skip
    return routing


def combine_experts_triton(computed: Tensor, places: Tensor, shares: Tensor) -> Tensor:
    """Compute `combine_experts`."""
    check_device("combine_experts", combine_experts_kernel, computed)
    (num_tokens, num_chosen), hidden = places.shape, computed.shape[1]
    out = computed.new_empty((num_tokens, hidden))
    if num_tokens:
        _launch_combine(
            (num_tokens, -(-hidden // BLOCK)), (out, computed.contiguous(), places, shares),
            (hidden,),
            NUM_CHOSEN=num_chosen, BLOCK=BLOCK, num_warps=4,
        )  # fmt: skip
    return out


_launch_route = CachedLaunch(route_experts_kernel)
_launch_order = CachedLaunch(order_experts_kernel)
_launch_combine = CachedLaunch(combine_experts_kernel)
