"""Triton backend of `write_kv`, for caches in eight bits as well."""

# Triton traces its kernels: no Python annotation would be true of their arguments.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from batchmill.kernels.reference import fp8_rows

from .launch import check_device, check_fp8

#: Most numbers of a token that one program moves.
MAX_BLOCK = 2048

#: Larger magnitudes would become NaN.
FP8_MAX = tl.constexpr(fp8_rows.FP8_MAX)


@triton.jit
def to_cache(values, scale, CACHE_TYPE: tl.constexpr):
    """Round to the cache's type; eight bits hold value / scale, saturated."""
    if CACHE_TYPE == tl.float8e4nv:  # noqa: SIM300 (not a constant in Triton)
        scaled = values.to(tl.float32) / scale
        # NaN passes both comparisons of a clamp by where(), so a broken row stays visibly broken.
        scaled = tl.where(scaled > FP8_MAX, FP8_MAX, scaled)
        scaled = tl.where(scaled < -FP8_MAX, -FP8_MAX, scaled)
        cached = scaled.to(CACHE_TYPE)
    else:
        cached = values.to(CACHE_TYPE)
    return cached


@triton.jit
def write_kv_kernel(
    key,  # [num_tokens, TOKEN_SIZE], rows key_stride apart
    value,  # [num_tokens, TOKEN_SIZE], rows value_stride apart
    k_cache,  # [num_slots, TOKEN_SIZE]
    v_cache,  # [num_slots, TOKEN_SIZE]
    slot_mapping,  # int64 [num_tokens], -1 skips
    k_scale,
    v_scale,
    key_stride,
    value_stride,
    TOKEN_SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Program (t, b): BLOCK numbers of token t's key and value."""
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < TOKEN_SIZE
    slot = tl.load(slot_mapping + token)
    if slot >= 0:
        target = slot * TOKEN_SIZE + columns
        keys = tl.load(key + token * key_stride + columns, mask)
        tl.store(k_cache + target, to_cache(keys, k_scale, k_cache.dtype.element_ty), mask)
        values = tl.load(value + token * value_stride + columns, mask)
        tl.store(v_cache + target, to_cache(values, v_scale, v_cache.dtype.element_ty), mask)


def write_kv_triton(
    key: Tensor,
    value: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
    *,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> None:
    """Compute `write_kv`.

    Raises:
        ValueError: the cache is float8 and the GPU's compute capability is below 8.9.
    """
    check_device("write_kv", write_kv_kernel, key)
    check_fp8(k_cache)
    num_tokens = key.shape[0]
    token_size = k_cache.shape[2] * k_cache.shape[3]
    if num_tokens == 0:
        return
    block = min(MAX_BLOCK, triton.next_power_of_2(token_size))
    write_kv_kernel[(num_tokens, triton.cdiv(token_size, block))](
        key,
        value,
        k_cache,
        v_cache,
        slot_mapping,
        k_scale,
        v_scale,
        key.stride(0),
        value.stride(0),
        TOKEN_SIZE=token_size,
        BLOCK=block,
        num_warps=4,
        enable_fp_fusion=True,
    )
