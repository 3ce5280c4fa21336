"""The Triton face of each op, imported when it first runs.

The ops list their faces when they are imported, on machines without Triton or a GPU as well, and
importing Triton takes about a second.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from batchmill.kernels.reference.paged_attention_plan import AttentionPlan

    from .decode_plan import DecodePlan

_log = logging.getLogger(__name__)


@lru_cache
def triton_is_usable() -> bool:
    """Whether Triton is installed; says once, loudly, where a GPU has to do without."""
    if find_spec("triton") is not None:
        return True
    _log.warning(
        "triton is not installed: the GPU runs the torch reference kernels, several times slower; "
        "install batchmill[gpu]"
    )
    return False


def paged_attention_triton(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_tables: Tensor,
    cu_seqlens_q: Tensor,
    seq_lens: Tensor,
    scale: float,
    *,
    window: int | None = None,
    plan: AttentionPlan | DecodePlan | None = None,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> Tensor:
    """See `triton_paged_attention`."""
    from .paged_attention import paged_attention_triton as face

    return face(
        q, k_cache, v_cache, block_tables, cu_seqlens_q, seq_lens, scale,
        window=window, plan=plan, k_scale=k_scale, v_scale=v_scale,
    )  # fmt: skip


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
    """See `triton_write_kv`."""
    from .write_kv import write_kv_triton as face

    face(key, value, k_cache, v_cache, slot_mapping, k_scale=k_scale, v_scale=v_scale)


def rope_and_cache_triton(
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
) -> Tensor:
    """See `triton_rope`."""
    from .rope import rope_and_cache_triton as face

    return face(
        qkv, k_cache, v_cache, slot_mapping, cos, sin,
        q_weight=q_weight, k_weight=k_weight, eps=eps, k_scale=k_scale, v_scale=v_scale,
    )  # fmt: skip


def apply_rope_triton(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    """See `triton_rope`."""
    from .rope import apply_rope_triton as face

    face(x, cos, sin)


def rms_norm_triton(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See `triton_rms_norm`."""
    from .rms_norm import rms_norm_triton as face

    return face(x, weight, eps)


def add_rms_norm_triton(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    """See `triton_rms_norm`."""
    from .rms_norm import add_rms_norm_triton as face

    return face(x, residual, weight, eps)


def silu_and_mul_triton(gate_up: Tensor) -> Tensor:
    """See `triton_gated_activation`."""
    from .gated_activation import silu_and_mul_triton as face

    return face(gate_up)


def gelu_and_mul_triton(gate_up: Tensor) -> Tensor:
    """See `triton_gated_activation`."""
    from .gated_activation import gelu_and_mul_triton as face

    return face(gate_up)


def rms_norm_fp8_triton(
    x: Tensor | None, residual: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """See `triton_rms_norm`."""
    from .rms_norm import rms_norm_fp8_triton as face

    return face(x, residual, weight, eps)


def gated_activation_fp8_triton(gate_up: Tensor, *, is_gelu: bool) -> tuple[Tensor, Tensor]:
    """See `triton_fp8_gated_activation`."""
    from .fp8_gated_activation import gated_activation_fp8_triton as face

    return face(gate_up, is_gelu=is_gelu)


def quantize_fp8_triton(x: Tensor) -> tuple[Tensor, Tensor]:
    """See `triton_fp8_quantize`."""
    from .fp8_quantize import quantize_fp8_triton as face

    return face(x)


def sample_triton(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    seeds: Tensor,
    positions: Tensor,
) -> Tensor:
    """See `triton_sample`."""
    from .sample import sample_triton as face

    return face(logits, temperature, top_k, top_p, seeds, positions)
