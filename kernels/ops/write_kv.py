"""Store this step's keys and values in their cache slots.

Source: PagedAttention, Kwon et al. 2023, section 4.3.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from batchmill.kernels.cpu.bindings import write_kv_cpp
from batchmill.kernels.reference.fp8_rows import FP8, FP8_MAX

from .dispatch import Backend, lazy_triton, select_backend


def write_kv(
    key: Tensor,
    value: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
    *,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
    backend: Backend = "auto",
) -> None:
    """Scatter keys and values into the cache, in place.

    Args:
        key: [num_tokens, num_kv_heads, head_dim], contiguous in the last two dimensions.
        value: As `key`.
        k_cache: [num_blocks, block_size, num_kv_heads, head_dim], contiguous, in the keys' dtype or
            float8_e4m3fn (which the C++ backend does not write); written in place.
        v_cache: As `k_cache`.
        slot_mapping: [num_tokens] int64; slot = block_id * block_size + offset; -1 skips a token.
        k_scale: Value of one unit in a float8 key cache, which holds key / k_scale, saturated at
            448. Unused for other dtypes.
        v_scale: The same for values.
        backend: The implementation to use; `auto` takes the fastest.

    Raises:
        ValueError: shapes or dtypes do not match.
    """
    _check(key, value, k_cache, v_cache, slot_mapping)
    if k_cache.dtype == FP8:
        write_fp8 = select_backend("write_kv (float8 cache)", _FP8_BACKENDS, backend, key.device)
        write_fp8(key, value, k_cache, v_cache, slot_mapping, k_scale=k_scale, v_scale=v_scale)
    else:
        write = select_backend("write_kv", _BACKENDS, backend, key.device)
        write(key, value, k_cache, v_cache, slot_mapping)


def check_cache_dtype(dtype: torch.dtype, k_cache: Tensor, v_cache: Tensor) -> None:
    """Refuse caches whose dtype is neither the model's nor float8_e4m3fn.

    Raises:
        ValueError: a cache has another dtype, or the two caches differ.
    """
    if k_cache.dtype != v_cache.dtype or k_cache.dtype not in (dtype, FP8):
        raise ValueError(
            f"the caches must both be {dtype} like the keys and queries, or both {FP8}; got "
            f"{k_cache.dtype} and {v_cache.dtype}"
        )


def _check(
    key: Tensor, value: Tensor, k_cache: Tensor, v_cache: Tensor, slot_mapping: Tensor
) -> None:
    """Compare shapes and dtypes on the host, without reading any tensor."""
    if key.shape != value.shape or k_cache.shape != v_cache.shape or k_cache.dim() != 4:
        raise ValueError(
            "key and value must have the same shape, and k_cache and v_cache the same "
            "[num_blocks, block_size, num_kv_heads, head_dim]; got "
            f"{list(key.shape)}, {list(value.shape)}, {list(k_cache.shape)}, {list(v_cache.shape)}"
        )
    if key.shape != (len(slot_mapping), *k_cache.shape[2:]):
        raise ValueError(
            f"for {len(slot_mapping)} slots of a cache {list(k_cache.shape)}, key must be "
            f"{[len(slot_mapping), *k_cache.shape[2:]]}, got {list(key.shape)}"
        )
    if key.dtype != value.dtype:
        raise ValueError(
            f"key and value must have the same dtype, got {key.dtype} and {value.dtype}"
        )
    check_cache_dtype(key.dtype, k_cache, v_cache)
    if slot_mapping.dtype != torch.int64:
        raise ValueError(f"slot_mapping must be torch.int64, got {slot_mapping.dtype}")


def write_kv_reference(
    key: Tensor,
    value: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
    *,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> None:
    """Compute `write_kv` in plain torch; same arguments."""
    kept = slot_mapping >= 0
    if not bool(kept.all()):
        key, value, slot_mapping = key[kept], value[kept], slot_mapping[kept]
    for rows, cache, scale in ((key, k_cache, k_scale), (value, v_cache, v_scale)):
        if cache.dtype == FP8:
            scaled = (rows.float() / scale).clamp(-FP8_MAX, FP8_MAX)  # NaN stays NaN
            # As bytes: torch's CPU lacks index operations on eight-bit floats.
            rows, cache = scaled.to(FP8).view(torch.uint8), cache.view(torch.uint8)
        cache.view(-1, *cache.shape[2:]).index_copy_(0, slot_mapping, rows)


#: All backends that write an eight-bit cache; only these take its scales.
_FP8_BACKENDS = {
    "reference": write_kv_reference,
    "triton": lazy_triton(
        "batchmill.kernels.gpu.write_kv", "write_kv_triton", like=write_kv_reference
    ),
}
_BACKENDS: Mapping[str, Callable[..., None]] = {**_FP8_BACKENDS, "cpp": write_kv_cpp}
