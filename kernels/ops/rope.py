"""Rotary position embedding in the rotate-half form.

    (a, b) -> (a cos - b sin, b cos + a sin),   a and b the two halves of the rotated dimensions

Source: RoFormer, Su et al. 2021, section 3.2; halves instead of pairs as in GPT-NeoX and Llama.
"""

from __future__ import annotations

import torch
from torch import Tensor

from batchmill.kernels.cpu.bindings import apply_rope_cpp

from .dispatch import Backend, lazy_triton, select_backend


def apply_rope(x: Tensor, cos: Tensor, sin: Tensor, *, backend: Backend = "auto") -> None:
    """Rotate heads in place, in float32; one view can hold queries and keys.

    Args:
        x: [num_tokens, num_heads, head_dim], contiguous in the last two dimensions.
        cos: [num_tokens, rotary_dim / 2] float32, contiguous; later dimensions are not rotated.
        sin: As `cos`.
        backend: The implementation to use; `auto` takes the fastest.

    Raises:
        ValueError: shapes or dtypes do not match.
    """
    if x.dim() != 3 or cos.shape != sin.shape or cos.shape[:-1] != x.shape[:1]:
        raise ValueError(
            "x must be [num_tokens, num_heads, head_dim], cos and sin [num_tokens, rotary_dim / 2];"
            f" got {list(x.shape)}, {list(cos.shape)}, {list(sin.shape)}"
        )
    if 2 * cos.shape[1] > x.shape[2]:
        raise ValueError(f"rotary_dim {2 * cos.shape[1]} is more than head_dim {x.shape[2]}")
    if cos.dtype != torch.float32 or sin.dtype != torch.float32:
        raise ValueError(f"cos and sin must be torch.float32, got {cos.dtype} and {sin.dtype}")
    select_backend("apply_rope", _BACKENDS, backend, x.device)(x, cos, sin)


def apply_rope_reference(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Compute `apply_rope` in plain torch."""
    half = cos.shape[1]
    first, second = x[..., :half], x[..., half : 2 * half]
    cos, sin = cos[:, None], sin[:, None]  # [num_tokens, 1, rotary_dim / 2]
    rotated_first = first * cos - second * sin
    rotated_second = second * cos + first * sin
    first.copy_(rotated_first)
    second.copy_(rotated_second)


_BACKENDS = {
    "reference": apply_rope_reference,
    "cpp": apply_rope_cpp,
    "triton": lazy_triton(
        "batchmill.kernels.gpu.rope", "apply_rope_triton", like=apply_rope_reference
    ),
}
