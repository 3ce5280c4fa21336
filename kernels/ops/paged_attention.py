"""Attention of this step's queries over keys and values in cache blocks.

    out[i] = softmax(scale * q[i] . K[: p + 1]) V[: p + 1],    p = position of query i

One call serves decode (one query per sequence) and chunked prefill (several) together.

Source: PagedAttention, Kwon et al. 2023; grouped-query attention, Ainslie et al. 2023.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from batchmill.kernels.cpu.bindings import paged_attention_cpp
from batchmill.kernels.reference.fp8_rows import FP8
from batchmill.kernels.reference.paged_attention import paged_attention_reference
from batchmill.kernels.reference.paged_attention_plan import AttentionPlan

from .dispatch import Backend, lazy_triton, select_backend
from .write_kv import check_cache_dtype

#: All backends that read an eight-bit cache; only these take its scales.
_FP8_BACKENDS = {
    "reference": paged_attention_reference,
    "triton": lazy_triton(
        "batchmill.kernels.gpu.paged_attention",
        "paged_attention_triton",
        like=paged_attention_reference,
    ),
}
_BACKENDS: Mapping[str, Callable[..., Tensor]] = {**_FP8_BACKENDS, "cpp": paged_attention_cpp}


def paged_attention(
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
    backend: Backend = "auto",
) -> Tensor:
    """Attend to the cached keys and values, this step's own included (`write_kv` came first).

    Causal: query i of a sequence sits at position seq_len - query_len + i and sees the keys up to
    its own position.

    Args:
        q: [num_tokens, num_heads, head_dim], the last two dimensions contiguous; num_heads is a
            multiple of num_kv_heads.
        k_cache: [num_blocks, block_size, num_kv_heads, head_dim], contiguous, in q's dtype or
            float8_e4m3fn (which the C++ backend does not read).
        v_cache: As `k_cache`.
        block_tables: [num_seqs, max_blocks] int32; entries past a sequence's last block are unused.
        cu_seqlens_q: [num_seqs + 1] int32, the first query of each sequence, then num_tokens.
        seq_lens: [num_seqs] int32, number of keys of each sequence, this step's included.
        scale: Factor on the scores.
        window: A query sees only its last `window` keys, its own included; None sees all.
        plan: The step's `AttentionPlan`, worth passing if several layers share it; if it is None,
            a backend that needs one makes it.
        sinks: [num_heads] float32: a score that each query of a head gives to nothing, so that the
            weights of its keys add up to less than 1; None has no such scores.
        k_scale: Value of one unit in a float8 key cache; unused for other dtypes.
        v_scale: The same for values.
        backend: The implementation to use; `auto` takes the fastest.

    Returns:
        [num_tokens, num_heads, head_dim] in q's dtype, contiguous.

    Raises:
        ValueError: shapes or dtypes do not match, or the window is less than 1.
    """
    _check(q, k_cache, v_cache, block_tables, cu_seqlens_q, seq_lens, window)
    _check_sinks(sinks, q)
    batch = (q, k_cache, v_cache, block_tables, cu_seqlens_q, seq_lens, scale)
    if k_cache.dtype == FP8:
        op = "paged_attention (float8 cache)"
        attend_fp8 = select_backend(op, _FP8_BACKENDS, backend, q.device)
        return attend_fp8(
            *batch, window=window, plan=plan, sinks=sinks, k_scale=k_scale, v_scale=v_scale
        )
    attend = select_backend("paged_attention", _BACKENDS, backend, q.device)
    return attend(*batch, window=window, plan=plan, sinks=sinks)


def _check_sinks(sinks: Tensor | None, q: Tensor) -> None:
    if sinks is not None and (sinks.shape != q.shape[1:2] or sinks.dtype != torch.float32):
        raise ValueError(
            f"sinks must be [{q.shape[1]}] torch.float32, one per head of q, got "
            f"{list(sinks.shape)} {sinks.dtype}"
        )


def _check(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_tables: Tensor,
    cu_seqlens_q: Tensor,
    seq_lens: Tensor,
    window: int | None,
) -> None:
    """Compare shapes and dtypes on the host, without reading any tensor."""
    if q.dim() != 3 or k_cache.dim() != 4 or k_cache.shape != v_cache.shape:
        raise ValueError(
            "q must be [num_tokens, num_heads, head_dim], k_cache and v_cache the same "
            f"[num_blocks, block_size, num_kv_heads, head_dim]; got {list(q.shape)}, "
            f"{list(k_cache.shape)}, {list(v_cache.shape)}"
        )
    _, num_heads, head_dim = q.shape
    num_kv_heads = k_cache.shape[2]
    if k_cache.shape[3] != head_dim or num_heads % num_kv_heads:
        raise ValueError(
            f"q has {num_heads} heads of {head_dim}, the cache {num_kv_heads} heads of "
            f"{k_cache.shape[3]}: head sizes must be equal, and the number of query heads a "
            "multiple of the cache's"
        )
    check_cache_dtype(q.dtype, k_cache, v_cache)
    num_seqs = seq_lens.shape[0]
    if block_tables.shape[:1] != (num_seqs,) or cu_seqlens_q.shape != (num_seqs + 1,):
        raise ValueError(
            f"for {num_seqs} seq_lens, block_tables must be [{num_seqs}, max_blocks] and "
            f"cu_seqlens_q [{num_seqs + 1}]; got {list(block_tables.shape)} and "
            f"{list(cu_seqlens_q.shape)}"
        )
    for name, index in (
        ("block_tables", block_tables),
        ("cu_seqlens_q", cu_seqlens_q),
        ("seq_lens", seq_lens),
    ):
        if index.dtype != torch.int32:
            raise ValueError(f"{name} must be torch.int32, got {index.dtype}")
    if window is not None and window < 1:
        raise ValueError(f"window is {window}, it must be at least 1, or None for no window")
