"""Root-mean-square norm, alone or with the residual addition before it.

    rms_norm(x) = x / sqrt(mean(x^2) + eps) * weight

Source: Root Mean Square Layer Normalization, Zhang and Sennrich 2019.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from batchmill.kernels.cpu.bindings import add_rms_norm_cpp, rms_norm_cpp

from .dispatch import Backend, Implementation, lazy_triton, select_backend


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, backend: Backend = "auto") -> Tensor:
    """Normalise the last dimension; squares are summed in float32 in any dtype.

    Args:
        x: [..., size], contiguous in the last dimension.
        weight: [size], same dtype as x; or float32, and the result is rounded once (Gemma), which
            the C++ backend does not do in other dtypes.
        eps: Added to the mean square.
        backend: The implementation to use; `auto` takes the fastest.

    Returns:
        Same shape and dtype as x, contiguous.

    Raises:
        ValueError: shapes or dtypes do not match.
    """
    _check(x, weight)
    backends = _backends_for(_NORM_BACKENDS, x, weight)
    return select_backend("rms_norm", backends, backend, x.device)(x, weight, eps)


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, *, backend: Backend = "auto"
) -> Tensor:
    """Add x to the residual, in place, and normalise the sum.

    Args:
        x: [num_tokens, size], contiguous.
        residual: Same shape and dtype as x, contiguous; holds the sum afterwards.
        weight: [size], as in `rms_norm`.
        eps: Added to the mean square.
        backend: The implementation to use; `auto` takes the fastest.

    Returns:
        The normalised sum, same shape and dtype as x.

    Raises:
        ValueError: shapes or dtypes do not match.
    """
    _check(x, weight)
    if residual.shape != x.shape or residual.dtype != x.dtype:
        raise ValueError(
            f"residual must be {list(x.shape)} {x.dtype} like x, got {list(residual.shape)} "
            f"{residual.dtype}"
        )
    backends = _backends_for(_ADD_NORM_BACKENDS, x, weight)
    return select_backend("add_rms_norm", backends, backend, x.device)(x, residual, weight, eps)


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Compute `rms_norm` in plain torch."""
    if weight.dtype != x.dtype:
        return F.rms_norm(x.float(), weight.shape, weight, eps).to(x.dtype)
    return F.rms_norm(x, weight.shape, weight, eps)


def add_rms_norm_reference(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Compute `add_rms_norm` in plain torch: the sum is rounded to the dtype, then normalised."""
    return rms_norm_reference(residual.add_(x), weight, eps)


_NORM_BACKENDS = {
    "reference": rms_norm_reference,
    "cpp": rms_norm_cpp,
    "triton": lazy_triton(
        "batchmill.kernels.gpu.rms_norm", "rms_norm_triton", like=rms_norm_reference
    ),
}
_ADD_NORM_BACKENDS = {
    "reference": add_rms_norm_reference,
    "cpp": add_rms_norm_cpp,
    "triton": lazy_triton(
        "batchmill.kernels.gpu.rms_norm", "add_rms_norm_triton", like=add_rms_norm_reference
    ),
}


def _backends_for(
    backends: Mapping[str, Implementation], x: Tensor, weight: Tensor
) -> Mapping[str, Implementation]:
    """Return the backends that multiply by a weight of this dtype."""
    if weight.dtype == x.dtype:
        return backends
    return {name: compute for name, compute in backends.items() if name != "cpp"}


def _check(x: Tensor, weight: Tensor) -> None:
    dtypes = (x.dtype, torch.float32)
    if weight.dim() != 1 or x.shape[-1:] != weight.shape or weight.dtype not in dtypes:
        raise ValueError(
            f"weight must be [{x.shape[-1]}] {x.dtype} or float32 for x {list(x.shape)}, got "
            f"{list(weight.shape)} {weight.dtype}"
        )
