"""Paged attention one token and one head at a time: too slow to run, too simple to be wrong."""

from __future__ import annotations

import torch
from torch import Tensor


def paged_attention_oracle(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_tables: Tensor,
    cu_seqlens_q: Tensor,
    seq_lens: Tensor,
    scale: float,
    *,
    window: int | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """Compute `paged_attention` in float64; every backend must agree with it."""
    num_heads, block_size = q.shape[1], k_cache.shape[1]
    group = num_heads // k_cache.shape[2]
    out = torch.zeros(q.shape, dtype=torch.float64, device=q.device)
    for seq, seq_len in enumerate(seq_lens.tolist()):
        start, stop = cu_seqlens_q[seq : seq + 2].tolist()
        for row in range(start, stop):
            position = seq_len - (stop - row)
            first = 0 if window is None else max(0, position - window + 1)
            slots = [
                (int(block_tables[seq, key // block_size]), key % block_size)
                for key in range(first, position + 1)
            ]
            for head in range(num_heads):
                keys = torch.stack([k_cache[b, o, head // group] for b, o in slots]).double()
                values = torch.stack([v_cache[b, o, head // group] for b, o in slots]).double()
                scores = keys @ q[row, head].double() * scale
                if sinks is not None:
                    scores = torch.cat([scores, sinks[head : head + 1].double()])
                weights = torch.softmax(scores, dim=0)[: len(slots)]
                out[row, head] = weights @ values
    return out
