"""Reference of paged attention: gather the blocks, then scaled_dot_product_attention.

Query heads that share a key head become query rows, so keys are never repeated: measured 2 to 6
times as fast as `enable_gqa` in bf16 on a CPU.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from .paged_attention_plan import AttentionPlan, DecodeBucket, PrefillChunk


def paged_attention_reference(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_tables: Tensor,
    cu_seqlens_q: Tensor,
    seq_lens: Tensor,
    scale: float,
    *,
    window: int | None = None,
    plan: AttentionPlan | None = None,
    sinks: Tensor | None = None,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> Tensor:
    """Compute `paged_attention` in plain torch."""
    if plan is None:
        plan = AttentionPlan(block_tables, cu_seqlens_q, seq_lens, k_cache, window=window)
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    caches = _Cache(k_cache, k_scale, q.dtype), _Cache(v_cache, v_scale, q.dtype)
    for bucket in plan.decode:
        _decode(q, *caches, scale, bucket, sinks, out)
    for chunk in plan.prefill:
        _prefill(q, *caches, scale, chunk, sinks, out)
    return out


@dataclass(frozen=True, slots=True)
class _Cache:
    """Keys or values of all blocks, and how to read them."""

    blocks: Tensor
    #: Value of one unit, if the blocks hold eight bits.
    scale: float
    dtype: torch.dtype

    def gather(self, block_ids: Tensor) -> Tensor:
        """Return blocks by number, [len(block_ids), block elements] in `dtype`.

        `index_select` on whole blocks runs at copy speed; indexing `cache[block_ids]` took ten
        times as long in bf16.
        """
        gathered = self.blocks.view(len(self.blocks), -1).index_select(0, block_ids)
        if gathered.dtype == self.dtype:
            return gathered
        return (gathered.float() * self.scale).to(self.dtype)


def _decode(
    q: Tensor,
    k_cache: _Cache,
    v_cache: _Cache,
    scale: float,
    bucket: DecodeBucket,
    sinks: Tensor | None,
    out: Tensor,
) -> None:
    """Attend with one query per sequence: a group's heads are the query rows of their key head."""
    num_kv_heads, head_dim = k_cache.blocks.shape[2:]
    num_seqs = len(bucket.rows)
    shape = (num_seqs, -1, num_kv_heads, head_dim)
    keys = k_cache.gather(bucket.block_ids).view(shape).transpose(1, 2)  # [n, kv_heads, L, dim]
    values = v_cache.gather(bucket.block_ids).view(shape).transpose(1, 2)
    queries = q.index_select(0, bucket.rows).view(shape[0], num_kv_heads, -1, head_dim)
    mask = bucket.mask.to(q.dtype)
    if sinks is not None:
        of_heads = sinks.view(1, num_kv_heads, -1, 1).to(q.dtype)
        keys, values, mask = _with_sink(keys, values, mask, of_heads)
    attended = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=scale)
    out.index_copy_(0, bucket.rows, attended.reshape(num_seqs, *q.shape[1:]))


def _prefill(
    q: Tensor,
    k_cache: _Cache,
    v_cache: _Cache,
    scale: float,
    chunk: PrefillChunk,
    sinks: Tensor | None,
    out: Tensor,
) -> None:
    """Attend with several queries of a sequence: a batch of key heads, each shared by a group."""
    num_kv_heads, head_dim = k_cache.blocks.shape[2:]
    num_queries = chunk.stop - chunk.start
    shape = (-1, num_kv_heads, head_dim)
    queries = q[chunk.start : chunk.stop].view(num_queries, num_kv_heads, -1, head_dim)
    queries = queries.permute(1, 2, 0, 3)  # [kv_heads, group, num_queries, head_dim]
    group_shape = (num_kv_heads, queries.shape[1], chunk.num_keys, head_dim)
    # Stride 0 along the group: the keys are read several times and stored once.
    keys = k_cache.gather(chunk.block_ids).view(shape)[: chunk.num_keys].transpose(0, 1)
    values = v_cache.gather(chunk.block_ids).view(shape)[: chunk.num_keys].transpose(0, 1)
    keys, values = keys[:, None].expand(group_shape), values[:, None].expand(group_shape)
    mask = None if chunk.mask is None else chunk.mask.to(q.dtype)
    if sinks is not None:
        if mask is None:
            seen = torch.full((num_queries, chunk.num_keys), -torch.inf, device=q.device)
            mask = seen.triu(1 + chunk.num_keys - num_queries).to(q.dtype)
        of_heads = sinks.view(num_kv_heads, -1, 1, 1).to(q.dtype)
        keys, values, mask = _with_sink(keys, values, mask, of_heads)
    attended = F.scaled_dot_product_attention(
        queries, keys, values, attn_mask=mask, is_causal=mask is None, scale=scale
    )
    out[chunk.start : chunk.stop] = attended.permute(2, 0, 1, 3).reshape(num_queries, -1, head_dim)


def _with_sink(
    keys: Tensor, values: Tensor, mask: Tensor, sinks: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Append a key whose score is the sink and whose value is zero.

    Args:
        keys: [..., num_keys, head_dim].
        values: As `keys`.
        mask: Added to scores; its last dimension is the keys.
        sinks: One score per head, with the other dimensions of scores.
    """
    nothing = keys.new_zeros(*keys.shape[:-2], 1, keys.shape[-1])
    shape = torch.broadcast_shapes(mask.shape[:-1], sinks.shape[:-1])
    mask, sinks = mask.expand(*shape, mask.shape[-1]), sinks.expand(*shape, 1)
    return (
        torch.cat([keys, nothing], -2),
        torch.cat([values, nothing], -2),
        torch.cat([mask, sinks], -1),
    )
