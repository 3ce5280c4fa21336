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

from .dispatch import Backend, lazy_triton, select_backend


def silu_and_mul(gate_up: Tensor, *, backend: Backend = "auto") -> Tensor:
    """Multiply silu of the first half of each row by the second half.

    Args:
        gate_up: [num_tokens, 2 * size], contiguous: gate, then up.
        backend: The implementation to use; `auto` takes the fastest.

    Returns:
        [num_tokens, size], same dtype, contiguous.

    Raises:
        ValueError: gate_up has another shape.
    """
    _check_shape(gate_up)
    return select_backend("silu_and_mul", _SILU_BACKENDS, backend, gate_up.device)(gate_up)


def gelu_and_mul(gate_up: Tensor, *, backend: Backend = "auto") -> Tensor:
    """Multiply the tanh form of gelu of the first half of each row by the second half.

    Arguments, result and errors are those of `silu_and_mul`.
    """
    _check_shape(gate_up)
    return select_backend("gelu_and_mul", _GELU_BACKENDS, backend, gate_up.device)(gate_up)


def silu_and_mul_reference(gate_up: Tensor) -> Tensor:
    """Compute `silu_and_mul` in plain torch."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)


def gelu_and_mul_reference(gate_up: Tensor) -> Tensor:
    """Compute `gelu_and_mul` in plain torch."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.gelu(gate, approximate="tanh").mul_(up)


_SILU_BACKENDS = {
    "reference": silu_and_mul_reference,
    "cpp": silu_and_mul_cpp,
    "triton": lazy_triton(
        "batchmill.kernels.gpu.gated_activation", "silu_and_mul_triton", like=silu_and_mul_reference
    ),
}
_GELU_BACKENDS = {
    "reference": gelu_and_mul_reference,
    "triton": lazy_triton(
        "batchmill.kernels.gpu.gated_activation", "gelu_and_mul_triton", like=gelu_and_mul_reference
    ),
}


def _check_shape(gate_up: Tensor) -> None:
    if gate_up.dim() != 2 or gate_up.shape[1] % 2:
        raise ValueError(f"gate_up must be [num_tokens, 2 * size], got {list(gate_up.shape)}")
