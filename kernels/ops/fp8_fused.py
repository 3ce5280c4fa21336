"""Norms and gated activations whose results are quantized at once, for products in fp8.

    rms_norm_fp8 = quantize_fp8(rms_norm),    gated_activation_fp8 = quantize_fp8(silu_and_mul)

Each is as if its first part had been stored in the activations' dtype. On a GPU they are one
kernel, and what would be written and read between the two is not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor

from batchmill.kernels.gpu.bindings import gated_activation_fp8_triton, rms_norm_fp8_triton

from .dispatch import Backend, select_face
from .fp8_quantize import Fp8Rows, quantize_fp8_reference
from .gated_activation import gelu_and_mul, silu_and_mul
from .rms_norm import add_rms_norm_reference, rms_norm_reference


def rms_norm_fp8(
    x: Tensor | None,
    residual: Tensor,
    weight: Tensor,
    eps: float,
    *,
    backend: Backend = "auto",
) -> Fp8Rows:
    """Normalise the residual, after adding x to it in place where there is one, and quantize.

    Args:
        x: [num_tokens, size], contiguous, or None.
        residual: The same; holds the sum afterwards.
        weight: [size], same dtype or float32, as in `batchmill.kernels.ops.rms_norm`.
        eps: Added to the mean square.
        backend: The face that computes it.
    """
    return select_face("rms_norm_fp8", _NORM_FACES, backend, residual.device)(
        x, residual, weight, eps
    )


def gated_activation_fp8(
    gate_up: Tensor, *, activation: Literal["silu", "gelu_tanh"], backend: Backend = "auto"
) -> Fp8Rows:
    """Activate the first half of each row, multiply by the second, and quantize.

    Args:
        gate_up: [num_tokens, 2 * size], contiguous.
        activation: See `silu_and_mul` and `gelu_and_mul`.
        backend: The face that computes it.

    Returns:
        [num_tokens, size].
    """
    faces = _GATED_FACES
    face = select_face("gated_activation_fp8", faces, backend, gate_up.device)
    return face(gate_up, activation == "gelu_tanh")


def _norm_reference(x: Tensor | None, residual: Tensor, weight: Tensor, eps: float) -> Fp8Rows:
    if x is None:
        return quantize_fp8_reference(rms_norm_reference(residual, weight, eps))
    return quantize_fp8_reference(add_rms_norm_reference(x, residual, weight, eps))


def _gated_reference(gate_up: Tensor, is_gelu: bool) -> Fp8Rows:
    op = gelu_and_mul if is_gelu else silu_and_mul
    return quantize_fp8_reference(op(gate_up, backend="reference"))


_NORM_FACES: dict[str, Callable[[Tensor | None, Tensor, Tensor, float], Fp8Rows]] = {
    "reference": _norm_reference,
    "triton": lambda x, residual, weight, eps: Fp8Rows(
        *rms_norm_fp8_triton(x, residual, weight, eps)
    ),
}
_GATED_FACES: dict[str, Callable[[Tensor, bool], Fp8Rows]] = {
    "reference": _gated_reference,
    "triton": lambda gate_up, is_gelu: Fp8Rows(
        *gated_activation_fp8_triton(gate_up, is_gelu=is_gelu)
    ),
}
