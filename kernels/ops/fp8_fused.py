"""Norms and gated activations whose results are quantized at once, for products in fp8.

    rms_norm_fp8 = quantize_fp8(rms_norm),    gated_activation_fp8 = quantize_fp8(silu_and_mul)

The result is the same as if the first op had stored its result in the activations' dtype. On a GPU
both ops are one kernel, so the intermediate result is neither written nor read.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from batchmill.kernels.reference.fp8_rows import Fp8Rows, quantize_fp8_reference

from .dispatch import Backend, lazy_triton, select_backend
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
    """Add x to the residual in place, if there is an x; normalise the residual and quantize it.

    Args:
        x: [num_tokens, size], contiguous, or None.
        residual: [num_tokens, size], contiguous; holds the sum afterwards.
        weight: [size], same dtype or float32, as in `batchmill.kernels.ops.rms_norm`.
        eps: Added to the mean square.
        backend: The implementation to use; `auto` takes the fastest.
    """
    compute = select_backend("rms_norm_fp8", _NORM_BACKENDS, backend, residual.device)
    return compute(x, residual, weight, eps)


def gated_activation_fp8(
    gate_up: Tensor, *, activation: Literal["silu", "gelu_tanh"], backend: Backend = "auto"
) -> Fp8Rows:
    """Activate the first half of each row, multiply by the second, and quantize.

    Args:
        gate_up: [num_tokens, 2 * size], contiguous.
        activation: See `silu_and_mul` and `gelu_and_mul`.
        backend: The implementation to use; `auto` takes the fastest.

    Returns:
        [num_tokens, size].
    """
    compute = select_backend("gated_activation_fp8", _GATED_BACKENDS, backend, gate_up.device)
    return compute(gate_up, is_gelu=activation == "gelu_tanh")


def _norm_reference(x: Tensor | None, residual: Tensor, weight: Tensor, eps: float) -> Fp8Rows:
    if x is None:
        return quantize_fp8_reference(rms_norm_reference(residual, weight, eps))
    return quantize_fp8_reference(add_rms_norm_reference(x, residual, weight, eps))


def _gated_reference(gate_up: Tensor, *, is_gelu: bool) -> Fp8Rows:
    op = gelu_and_mul if is_gelu else silu_and_mul
    return quantize_fp8_reference(op(gate_up, backend="reference"))


_NORM_BACKENDS = {
    "reference": _norm_reference,
    "triton": lazy_triton(
        "batchmill.kernels.gpu.rms_norm", "rms_norm_fp8_triton", like=_norm_reference
    ),
}
_GATED_BACKENDS = {
    "reference": _gated_reference,
    "triton": lazy_triton(
        "batchmill.kernels.gpu.fp8_gated_activation",
        "gated_activation_fp8_triton",
        like=_gated_reference,
    ),
}
