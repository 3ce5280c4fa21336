"""Gated activation of the Llama family's MLP.

    silu_and_mul([gate | up]) = gate * sigmoid(gate) * up

Source: GLU Variants Improve Transformer, Shazeer 2020 (SwiGLU).
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .cpp_faces import silu_and_mul_cpp
from .dispatch import Backend, select_face
from .triton_faces import silu_and_mul_triton


def silu_and_mul(gate_up: Tensor, *, backend: Backend = "auto") -> Tensor:
    """Multiply silu of the first half with the second half.

    Args:
        gate_up: [num_tokens, 2 * size], contiguous: gate, then up.
        backend: The face that computes it.

    Returns:
        [num_tokens, size], same dtype, contiguous.

    Raises:
        ValueError: the shape is not that.
    """
    if gate_up.dim() != 2 or gate_up.shape[1] % 2:
        raise ValueError(f"gate_up must be [num_tokens, 2 * size], got {list(gate_up.shape)}")
    return select_face("silu_and_mul", _FACES, backend, gate_up.device)(gate_up)


def silu_and_mul_reference(gate_up: Tensor) -> Tensor:
    """Plain torch truth of `silu_and_mul`."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)


_FACES = {
    "reference": silu_and_mul_reference,
    "cpp": silu_and_mul_cpp,
    "triton": silu_and_mul_triton,
}
