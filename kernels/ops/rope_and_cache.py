"""The steps from the qkv projection to the cache as one op: norms, rotation and the cache write.

Source: the fusion is that of vLLM's and SGLang's `fused_qknorm_rope` kernels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

from .dispatch import Backend, lazy_triton, select_backend
from .rms_norm import rms_norm
from .rope import apply_rope
from .write_kv import check_cache_dtype, write_kv


def rope_and_cache(
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
    backend: Backend = "auto",
) -> Tensor:
    """Normalise queries and keys if there are norm weights, rotate them, store keys and values.

    Args:
        qkv: [num_tokens, (num_heads + 2 * num_kv_heads) * head_dim], contiguous: queries, keys,
            values. Its contents are undefined afterwards.
        k_cache: [num_blocks, block_size, num_kv_heads, head_dim], contiguous, in qkv's dtype or
            float8_e4m3fn; written in place.
        v_cache: As `k_cache`.
        slot_mapping: [num_tokens] int64; slot = block_id * block_size + offset; -1 skips a token.
        cos: [num_tokens, rotary_dim / 2] float32, contiguous; later dimensions are not rotated.
        sin: As `cos`.
        q_weight: [head_dim] norm weight of queries, in qkv's dtype or float32; both or neither.
        k_weight: [head_dim] norm weight of keys.
        eps: Added to the mean square in the norms.
        k_scale: Value of one unit in a float8 key cache; unused for other dtypes.
        v_scale: The same for values.
        backend: The implementation to use; `auto` takes the fastest.

    Returns:
        The queries, [num_tokens, num_heads, head_dim]; the last two dimensions are contiguous.

    Raises:
        ValueError: shapes or dtypes do not match.
    """
    _check(qkv, k_cache, v_cache, slot_mapping, cos, sin)
    if (q_weight is None) != (k_weight is None):
        raise ValueError("q_weight and k_weight belong together: pass both or neither")
    # Only Triton has a fused kernel; otherwise each op selects its own backend.
    separate = partial(_from_separate_ops, backend=backend)
    backends: dict[str, Callable[..., Tensor]] = {
        "reference": separate,
        "cpp": separate,
        "triton": _fused_triton,
    }
    compute = select_backend("rope_and_cache", backends, backend, qkv.device)
    return compute(
        qkv, k_cache, v_cache, slot_mapping, cos, sin,
        q_weight=q_weight, k_weight=k_weight, eps=eps, k_scale=k_scale, v_scale=v_scale,
    )  # fmt: skip


def _check(
    qkv: Tensor, k_cache: Tensor, v_cache: Tensor, slot_mapping: Tensor, cos: Tensor, sin: Tensor
) -> None:
    """Compare shapes and dtypes on the host, without reading any tensor."""
    num_kv_heads, head_dim = k_cache.shape[2:]
    if qkv.dim() != 2 or qkv.shape[1] % head_dim or qkv.shape[1] <= 2 * num_kv_heads * head_dim:
        raise ValueError(
            f"for a cache of {num_kv_heads} heads of {head_dim}, qkv must be [num_tokens, "
            f"(num_heads + {2 * num_kv_heads}) * {head_dim}], got {list(qkv.shape)}"
        )
    if not len(qkv) == len(slot_mapping) == len(cos) == len(sin):
        raise ValueError(
            f"qkv, slot_mapping, cos and sin must have one row per token, got {len(qkv)}, "
            f"{len(slot_mapping)}, {len(cos)} and {len(sin)}"
        )
    check_cache_dtype(qkv.dtype, k_cache, v_cache)


def _from_separate_ops(
    qkv: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
    cos: Tensor,
    sin: Tensor,
    *,
    q_weight: Tensor | None,
    k_weight: Tensor | None,
    eps: float,
    k_scale: float,
    v_scale: float,
    backend: Backend,
) -> Tensor:
    """Call the ops one after another; queries and keys change in place."""
    num_kv_heads, head_dim = k_cache.shape[2:]
    heads = qkv.view(len(qkv), -1, head_dim)  # queries, keys, values
    first_value = heads.shape[1] - num_kv_heads
    first_key = first_value - num_kv_heads
    queries, keys = heads[:, :first_key], heads[:, first_key:first_value]
    if q_weight is not None and k_weight is not None:
        queries.copy_(rms_norm(queries, q_weight, eps, backend=backend))
        keys.copy_(rms_norm(keys, k_weight, eps, backend=backend))
    apply_rope(heads[:, :first_value], cos, sin, backend=backend)
    write_kv(
        keys, heads[:, first_value:], k_cache, v_cache, slot_mapping,
        k_scale=k_scale, v_scale=v_scale, backend=backend,
    )  # fmt: skip
    return queries


_fused_triton = lazy_triton(
    "batchmill.kernels.gpu.rope", "rope_and_cache_triton", like=_from_separate_ops
)
