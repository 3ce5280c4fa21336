"""Triton backend of `apply_rope`, and the fused step from the qkv projection to the cache.

The fused kernel does, in one launch and one pass over the projection, what takes five otherwise:
the norms of queries and keys (Qwen3), the rotation of both, and the write of keys and values.
"""

# Kernels are traced by Triton, not typed Python: no annotation would be true of their arguments.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import check_device, check_fp8
from .write_kv import to_cache

#: Heads a program handles: with 128 dimensions, 8 elements a thread at 4 warps.
HEADS = 8


@triton.jit
def apply_rope_kernel(
    x,  # [num_tokens, num_heads, HEAD_DIM], tokens token_stride apart, rotated in place
    cos,  # float32 [num_tokens, HALF]
    sin,  # float32 [num_tokens, HALF]
    token_stride,
    num_heads,
    HEAD_DIM: tl.constexpr,
    HALF: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Program (t, h): HEADS heads of token t. A thread owns both numbers of every pair it turns."""
    token = tl.program_id(0).to(tl.int64)
    heads = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    pairs = tl.arange(0, BLOCK)
    mask = (heads < num_heads)[:, None] & (pairs < HALF)[None, :]
    cosine = tl.load(cos + token * HALF + pairs, pairs < HALF, 0.0)[None, :]
    sine = tl.load(sin + token * HALF + pairs, pairs < HALF, 0.0)[None, :]
    target = x + token * token_stride + heads[:, None] * HEAD_DIM + pairs[None, :]
    first = tl.load(target, mask, 0.0).to(tl.float32)
    second = tl.load(target + HALF, mask, 0.0).to(tl.float32)
    tl.store(target, (first * cosine - second * sine).to(x.dtype.element_ty), mask)
    tl.store(target + HALF, (second * cosine + first * sine).to(x.dtype.element_ty), mask)


@triton.jit
def rope_and_cache_kernel(
    query_out,  # [num_tokens, NUM_HEADS, HEAD_DIM]
    k_cache,  # [num_slots, NUM_KV_HEADS, HEAD_DIM]
    v_cache,  # [num_slots, NUM_KV_HEADS, HEAD_DIM]
    qkv,  # [num_tokens, NUM_HEADS + 2 * NUM_KV_HEADS, HEAD_DIM], tokens token_stride apart
    cos,  # float32 [num_tokens, HALF]
    sin,  # float32 [num_tokens, HALF]
    q_weight,  # [HEAD_DIM], read where NORM
    k_weight,  # [HEAD_DIM], read where NORM
    slot_mapping,  # int64 [num_tokens], -1 skips the cache
    eps,
    k_scale,
    v_scale,
    token_stride,
    NORM: tl.constexpr,
    NUM_HEADS: tl.constexpr,
    NUM_KV_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    HALF: tl.constexpr,
    HEADS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Program (t, h): HEADS heads of token t, which may be queries, keys and values mixed.

    Every number is loaded twice, for itself and for its partner in the rotation (the second time
    from the first-level cache): so heads that are rotated in part need no second tile.
    """
    token = tl.program_id(0).to(tl.int64)
    heads = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    dims = tl.arange(0, BLOCK)
    is_query = heads < NUM_HEADS
    is_value = heads >= NUM_HEADS + NUM_KV_HEADS
    in_range = (heads < NUM_HEADS + 2 * NUM_KV_HEADS)[:, None] & (dims < HEAD_DIM)[None, :]
    rotated = dims < 2 * HALF
    partners = tl.where(rotated, (dims + HALF) % (2 * HALF), dims)
    source = qkv + token * token_stride + heads[:, None] * HEAD_DIM
    raw = tl.load(source + dims[None, :], in_range, 0.0)
    own = raw.to(tl.float32)
    partner = tl.load(source + partners[None, :], in_range, 0.0).to(tl.float32)
    if NORM:
        scale = tl.rsqrt(tl.sum(own * own, 1) / HEAD_DIM + eps)[:, None]
        own = own * scale * _weights(q_weight, k_weight, is_query, dims, HEAD_DIM)
        partner = partner * scale * _weights(q_weight, k_weight, is_query, partners, HEAD_DIM)
        # Rounded here as well, so that the result is that of the two separate ops.
        own = own.to(qkv.dtype.element_ty).to(tl.float32)
        partner = partner.to(qkv.dtype.element_ty).to(tl.float32)
    pairs = dims % HALF
    cosine = tl.load(cos + token * HALF + pairs, rotated, 1.0)[None, :]
    sine = tl.load(sin + token * HALF + pairs, rotated, 0.0)
    sine = tl.where(dims < HALF, -sine, sine)[None, :]
    turned = (own * cosine + partner * sine).to(qkv.dtype.element_ty)
    result = tl.where(is_value[:, None], raw, turned)

    target = (token * NUM_HEADS + heads)[:, None] * HEAD_DIM + dims[None, :]
    tl.store(query_out + target, result, in_range & is_query[:, None])
    slot = tl.load(slot_mapping + token)
    if slot >= 0:
        is_key = (heads >= NUM_HEADS) & (heads < NUM_HEADS + NUM_KV_HEADS)
        kv_heads = (heads - NUM_HEADS) % NUM_KV_HEADS
        target = (slot * NUM_KV_HEADS + kv_heads)[:, None] * HEAD_DIM + dims[None, :]
        keys = to_cache(result, k_scale, k_cache.dtype.element_ty)
        tl.store(k_cache + target, keys, in_range & is_key[:, None])
        values = to_cache(result, v_scale, v_cache.dtype.element_ty)
        tl.store(v_cache + target, values, in_range & is_value[:, None])


@triton.jit
def _weights(q_weight, k_weight, is_query, dims, HEAD_DIM: tl.constexpr):
    """The norm weights that apply to each head, float32 [HEADS, BLOCK]."""
    for_queries = tl.load(q_weight + dims, dims < HEAD_DIM, 0.0).to(tl.float32)
    for_keys = tl.load(k_weight + dims, dims < HEAD_DIM, 0.0).to(tl.float32)
    return tl.where(is_query[:, None], for_queries[None, :], for_keys[None, :])


def apply_rope_triton(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Same arguments as `batchmill.kernels.rope.apply_rope`; in place."""
    check_device("apply_rope", apply_rope_kernel, x)
    num_tokens, num_heads, head_dim = x.shape
    half = cos.shape[1]
    if x.numel() == 0 or half == 0:
        return
    apply_rope_kernel[(num_tokens, triton.cdiv(num_heads, HEADS))](
        x,
        cos,
        sin,
        x.stride(0),
        num_heads,
        HEAD_DIM=head_dim,
        HALF=half,
        HEADS=HEADS,
        BLOCK=triton.next_power_of_2(half),
        num_warps=4,
        enable_fp_fusion=True,
    )


def rope_and_cache_triton(
    qkv: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    q_weight: Tensor | None = None,
    k_weight: Tensor | None = None,
    eps: float = 0.0,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> Tensor:
    """Norm (where weights are given), rotate, and store keys and values, from one projection.

    Args:
        qkv: [num_tokens, (num_heads + 2 * num_kv_heads) * head_dim], contiguous in the last
            dimension: queries, keys, values. Not changed.
        k_cache: [num_blocks, block_size, num_kv_heads, head_dim], contiguous, in qkv's dtype or
            float8_e4m3fn; written in place.
        v_cache: As `k_cache`.
        slot_mapping: [num_tokens] int64, -1 skips a token.
        cos: [num_tokens, rotary_dim / 2] float32; dimensions past rotary_dim are not rotated.
        sin: As `cos`.
        q_weight: [head_dim] norm weight of queries; both weights or neither.
        k_weight: [head_dim] norm weight of keys.
        eps: Added to the mean square in the norms.
        k_scale: What one unit in a float8 key cache stands for.
        v_scale: What one unit in a float8 value cache stands for.

    Returns:
        The queries, [num_tokens, num_heads, head_dim], contiguous.

    Raises:
        ValueError: one norm weight without the other, or a float8 cache on a GPU that has none.
    """
    check_device("rope_and_cache", rope_and_cache_kernel, qkv)
    check_fp8(k_cache)
    if (q_weight is None) != (k_weight is None):
        raise ValueError("q_weight and k_weight go together: give both, or neither")
    num_kv_heads, head_dim = k_cache.shape[2:]
    num_tokens, half = cos.shape
    total_heads = qkv.shape[1] // head_dim
    num_heads = total_heads - 2 * num_kv_heads
    query = torch.empty((num_tokens, num_heads, head_dim), dtype=qkv.dtype, device=qkv.device)
    if num_tokens == 0:
        return query
    rope_and_cache_kernel[(num_tokens, triton.cdiv(total_heads, HEADS))](
        query,
        k_cache,
        v_cache,
        qkv,
        cos,
        sin,
        qkv if q_weight is None else q_weight,
        qkv if k_weight is None else k_weight,
        slot_mapping,
        eps,
        k_scale,
        v_scale,
        qkv.stride(0),
        NORM=q_weight is not None,
        NUM_HEADS=num_heads,
        NUM_KV_HEADS=num_kv_heads,
        HEAD_DIM=head_dim,
        HALF=half,
        HEADS=HEADS,
        BLOCK=triton.next_power_of_2(head_dim),
        num_warps=4,
        enable_fp_fusion=True,
    )
    return query
