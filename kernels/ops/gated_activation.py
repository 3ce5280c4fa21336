"""Gated activations of an MLP: SiLU for the Llama family, the tanh form of GELU for Gemma.

    silu_and_mul([gate | up]) = gate * sigmoid(gate) * up
    gelu_and_mul([gate | up]) = gate / 2 * (1 + tanh(sqrt(2 / pi) * (gate + 0.044715 gate^3))) * up

Source: GLU Variants Improve Transformer, Shazeer 2020 (SwiGLU, GEGLU); Gaussian Error Linear Units,
Hendrycks and Gimpel 2016, the tanh approximation.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from batchmill.kernels.cpu.bindings import silu_and_mul_cpp
from batchmill.kernels.gpu.bindings import gelu_and_mul_triton, silu_and_mul_triton

from .dispatch import Backend, select_face


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
    _check_shape(gate_up)
    return select_face("silu_and_mul", _SILU_FACES, backend, gate_up.device)(gate_up)


def silu_and_mul_reference(gate_up: Tensor) -> Tensor:
    """Plain torch truth of `silu_and_mul`."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)


_SILU_FACES = {
    "reference": silu_and_mul_reference,
    "cpp": silu_and_mul_cpp,
    "triton": silu_and_mul_triton,
}


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
    _check_shape(gate_up)
    return select_face("gelu_and_mul", _GELU_FACES, backend, gate_up.device)(gate_up)


def gelu_and_mul_reference(gate_up: Tensor) -> Tensor:
    """Plain torch truth of `gelu_and_mul`."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.gelu(gate, approximate="tanh").mul_(up)


_GELU_FACES = {"reference": gelu_and_mul_reference, "triton": gelu_and_mul_triton}


def _check_shape(gate_up: Tensor) -> None:
    if gate_up.dim() != 2 or gate_up.shape[1] % 2:
        raise ValueError(f"gate_up must be [num_tokens, 2 * size], got {list(gate_up.shape)}")
