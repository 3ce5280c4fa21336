"""Reference of `sample`: every step runs over the whole vocabulary, on any device."""

from __future__ import annotations

import torch
from torch import Tensor

_LOW_32_BITS = 0xFFFFFFFF


def sample_reference(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p_gaps: Tensor,
    seeds: Tensor,
    positions: Tensor,
) -> Tensor:
    """Compute `sample` in plain torch."""
    greedy = temperature == 0
    least = logits.amax(dim=-1) + min_p_gaps
    kept = logits.masked_fill(logits < least[:, None], float("-inf"))
    scaled = kept / torch.where(greedy, 1.0, temperature)[:, None]
    scaled = scaled.masked_fill(scaled < _top_k_floor(scaled, top_k), float("-inf"))
    scaled = scaled.masked_fill(scaled < _top_p_floor(scaled, top_p), float("-inf"))
    token_ids = torch.arange(logits.shape[1], device=logits.device)
    noise = gumbel_noise(seeds[:, None], positions[:, None], token_ids[None])
    return torch.where(greedy, logits.argmax(-1), (scaled + noise).argmax(-1))


def gumbel_noise(seeds: Tensor, positions: Tensor, token_ids: Tensor) -> Tensor:
    """Return Gumbel noise, a pure function of int64 arguments that broadcast; float32."""
    hashed = murmur3((seeds, seeds >> 32, positions, token_ids))
    uniform = ((hashed & 0x7FFFFFFF).to(torch.float32) + 0.5) * 2**-31
    exponential = -torch.log1p(-uniform.clamp(max=1 - 2**-24))
    return -torch.log(exponential)


def murmur3(blocks: tuple[Tensor, ...]) -> Tensor:
    """Return MurmurHash3_x86_32 of the blocks' low 32 bits, little-endian, seed 0, as int64.

    Source: MurmurHash3, Austin Appleby, public domain.
    """
    state = torch.zeros((), dtype=torch.int64, device=blocks[-1].device)
    for block in blocks:
        block = ((block & _LOW_32_BITS) * 0xCC9E2D51) & _LOW_32_BITS
        block = (_rotate_left(block, 15) * 0x1B873593) & _LOW_32_BITS
        state = (_rotate_left(state ^ block, 13) * 5 + 0xE6546B64) & _LOW_32_BITS
    state = state ^ (4 * len(blocks))
    state = ((state ^ (state >> 16)) * 0x85EBCA6B) & _LOW_32_BITS
    state = ((state ^ (state >> 13)) * 0xC2B2AE35) & _LOW_32_BITS
    return state ^ (state >> 16)


def _rotate_left(values: Tensor, bits: int) -> Tensor:
    return ((values << bits) | (values >> (32 - bits))) & _LOW_32_BITS


def _top_k_floor(scaled: Tensor, top_k: Tensor) -> Tensor:
    """Return the k-th largest value of each row, -inf if top-k is off, [num_rows, 1]."""
    vocab_size = scaled.shape[1]
    off = (top_k <= 0) | (top_k >= vocab_size)
    descending = scaled.sort(dim=-1, descending=True).values
    floor = descending.gather(1, (top_k.clamp(1, vocab_size) - 1)[:, None])
    return floor.masked_fill(off[:, None], float("-inf"))


def _top_p_floor(scaled: Tensor, top_p: Tensor) -> Tensor:
    """Return the smallest value in each row's nucleus, -inf if top-p is off, [num_rows, 1]."""
    descending = scaled.sort(dim=-1, descending=True).values
    reached = descending.softmax(-1, dtype=torch.float64).cumsum(-1)
    # The first entry that reaches p is the last one inside.
    last = (reached < top_p[:, None]).sum(-1).clamp(max=scaled.shape[1] - 1)
    floor = descending.gather(1, last[:, None])
    return floor.masked_fill((top_p >= 1)[:, None], float("-inf"))
