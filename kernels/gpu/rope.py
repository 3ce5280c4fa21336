"""Triton backends of `apply_rope` and `rope_and_cache`.

The fused kernel replaces five launches by one launch and one pass over the projection: the norms of
queries and keys (Qwen3), the rotation of both, and the write of keys and values.
"""

# Triton traces its kernels: no Python annotation would be true of their arguments.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import CachedLaunch, check_device, check_fp8, next_power_of_2
from .write_kv import to_cache

#: Heads per program: with 128 dimensions, 8 elements per thread at 4 warps.
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
    """Program (t, h): HEADS heads of token t. A thread owns both numbers of each pair."""
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
    q_weight,  # [HEAD_DIM], read if NORM
    k_weight,  # [HEAD_DIM], read if NORM
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
    from the first-level cache), so heads that are only partly rotated need no second tile.
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
        # Rounded here too, for the same result as the separate ops.
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
    """Return the norm weights of each head, float32 [HEADS, BLOCK]."""
    for_queries = tl.load(q_weight + dims, dims < HEAD_DIM, 0.0).to(tl.float32)
    for_keys = tl.load(k_weight + dims, dims < HEAD_DIM, 0.0).to(tl.float32)
    return tl.where(is_query[:, None], for_queries[None, :], for_keys[None, :])


def apply_rope_triton(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Compute `apply_rope`, in place."""
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
        BLOCK=next_power_of_2(half),
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
    """Compute `rope_and_cache`; qkv needs to be contiguous in its rows only and is not changed.

    Raises:
        ValueError: only one norm weight is given, or the GPU cannot write a float8 cache.
    """
    check_device("rope_and_cache", rope_and_cache_kernel, qkv)
    check_fp8(k_cache)
    if (q_weight is None) != (k_weight is None):
        raise ValueError("q_weight and k_weight belong together: pass both or neither")
    num_kv_heads, head_dim = k_cache.shape[2:]
    num_tokens, half = cos.shape
    total_heads = qkv.shape[1] // head_dim
    num_heads = total_heads - 2 * num_kv_heads
    query = torch.empty((num_tokens, num_heads, head_dim), dtype=qkv.dtype, device=qkv.device)
    if num_tokens == 0:
        return query
    _launch_rope_and_cache(
        (num_tokens, -(-total_heads // HEADS)),
        (query, k_cache, v_cache, qkv, cos, sin, qkv if q_weight is None else q_weight,
         qkv if k_weight is None else k_weight, slot_mapping),
        (eps, k_scale, v_scale, qkv.stride(0)),
        NORM=q_weight is not None, NUM_HEADS=num_heads, NUM_KV_HEADS=num_kv_heads,
        HEAD_DIM=head_dim, HALF=half, HEADS=HEADS, BLOCK=next_power_of_2(head_dim),
        num_warps=4, enable_fp_fusion=True,
    )  # fmt: skip
    return query


_launch_rope_and_cache = CachedLaunch(rope_and_cache_kernel)
