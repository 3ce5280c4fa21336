"""Store this step's keys and values in their cache slots.

Source: PagedAttention, Kwon et al. 2023, section 4.3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .cpp_faces import write_kv_cpp
from .dispatch import Backend, select_face
from .triton_faces import write_kv_triton


def write_kv(
    key: Tensor,
    value: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
    *,
    backend: Backend = "auto",
) -> None:
    """Scatter keys and values into the cache, in place.

    Args:
        key: [num_tokens, num_kv_heads, head_dim], contiguous in the last two dimensions.
        value: As `key`.
        k_cache: [num_blocks, block_size, num_kv_heads, head_dim], contiguous; written in place.
        v_cache: As `k_cache`.
        slot_mapping: [num_tokens] int64; slot = block_id * block_size + offset; -1 skips a token.
        backend: The face that computes it.

    Raises:
        ValueError: shapes or dtypes disagree.
    """
    if key.shape != value.shape or k_cache.shape != v_cache.shape or k_cache.dim() != 4:
        raise ValueError(
            "key and value must have one shape, and k_cache and v_cache one "
            "[num_blocks, block_size, num_kv_heads, head_dim]; got "
            f"{list(key.shape)}, {list(value.shape)}, {list(k_cache.shape)}, {list(v_cache.shape)}"
        )
    if key.shape != (len(slot_mapping), *k_cache.shape[2:]):
        raise ValueError(
            f"for {len(slot_mapping)} slots of a cache {list(k_cache.shape)}, key must be "
            f"{[len(slot_mapping), *k_cache.shape[2:]]}, got {list(key.shape)}"
        )
    if not key.dtype == value.dtype == k_cache.dtype == v_cache.dtype:
        raise ValueError(
            f"keys, values and caches must have one dtype, got {key.dtype}, {value.dtype}, "
            f"{k_cache.dtype}, {v_cache.dtype}"
        )
    if slot_mapping.dtype != torch.int64:
        raise ValueError(f"slot_mapping must be torch.int64, got {slot_mapping.dtype}")
    face = select_face("write_kv", _FACES, backend, key.device)
    face(key, value, k_cache, v_cache, slot_mapping)


def write_kv_reference(
    key: Tensor, value: Tensor, k_cache: Tensor, v_cache: Tensor, slot_mapping: Tensor
) -> None:
    """Plain torch truth; same arguments as `write_kv`."""
    kept = slot_mapping >= 0
    if not bool(kept.all()):
        key, value, slot_mapping = key[kept], value[kept], slot_mapping[kept]
    k_cache.view(-1, *k_cache.shape[2:]).index_copy_(0, slot_mapping, key)
    v_cache.view(-1, *v_cache.shape[2:]).index_copy_(0, slot_mapping, value)


_FACES = {"reference": write_kv_reference, "cpp": write_kv_cpp, "triton": write_kv_triton}
