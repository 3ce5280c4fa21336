"""Gated activation of Gemma's MLP.

    gelu_and_mul([gate | up]) = gate / 2 * (1 + tanh(sqrt(2 / pi) * (gate + 0.044715 gate^3))) * up

Source: GLU Variants Improve Transformer, Shazeer 2020 (GEGLU); Gaussian Error Linear Units,
Hendrycks and Gimpel 2016, the tanh approximation.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .dispatch import Backend, select_face
from .triton_faces import gelu_and_mul_triton


def gelu_and_mul(gate_up: Tensor, *, backend: Backend = "auto") -> Tensor:
    """Multiply the tanh form of gelu of the first half with the second half.

    Args:
        gate_up: [num_tokens, 2 * size]: gate, then up.
        backend: The face that computes it.

    Returns:
        [num_tokens, size], same dtype, contiguous.

    Raises:
        ValueError: the shape is not that.
    """
    if gate_up.dim() != 2 or gate_up.shape[1] % 2:
        raise ValueError(f"gate_up must be [num_tokens, 2 * size], got {list(gate_up.shape)}")
    return select_face("gelu_and_mul", _FACES, backend, gate_up.device)(gate_up)


def gelu_and_mul_reference(gate_up: Tensor) -> Tensor:
    """Plain torch truth of `gelu_and_mul`."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.gelu(gate, approximate="tanh").mul_(up)


_FACES = {"reference": gelu_and_mul_reference, "triton": gelu_and_mul_triton}
