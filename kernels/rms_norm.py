"""Root-mean-square norm, alone or with the residual addition before it.

    rms_norm(x) = x / sqrt(mean(x^2) + eps) * weight

Source: Root Mean Square Layer Normalization, Zhang and Sennrich 2019.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from .cpp_faces import add_rms_norm_cpp, rms_norm_cpp
from .dispatch import Backend, select_face
from .triton_faces import add_rms_norm_triton, rms_norm_triton


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, backend: Backend = "auto") -> Tensor:
    """Normalise the last dimension; squares are summed in float32 whatever the dtype.

    Args:
        x: [..., size], contiguous in the last dimension.
        weight: [size], same dtype as x.
        eps: Added to the mean square.
        backend: The face that computes it.

    Returns:
        Same shape and dtype as x, contiguous.

    Raises:
        ValueError: shapes or dtypes disagree.
    """
    _check(x, weight)
    return select_face("rms_norm", _NORM_FACES, backend, x.device)(x, weight, eps)


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, *, backend: Backend = "auto"
) -> Tensor:
    """Add x to the residual, in place, and normalise the sum.

    Args:
        x: [num_tokens, size], contiguous.
        residual: Same shape and dtype as x, contiguous; holds the sum afterwards.
        weight: [size], same dtype as x.
        eps: Added to the mean square.
        backend: The face that computes it.

    Returns:
        The normalised sum, same shape and dtype as x.

    Raises:
        ValueError: shapes or dtypes disagree.
    """
    _check(x, weight)
    if residual.shape != x.shape or residual.dtype != x.dtype:
        raise ValueError(
            f"residual must be {list(x.shape)} {x.dtype} as x is, got {list(residual.shape)} "
            f"{residual.dtype}"
        )
    face = select_face("add_rms_norm", _ADD_NORM_FACES, backend, x.device)
    return face(x, residual, weight, eps)


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Plain torch truth of `rms_norm`."""
    return F.rms_norm(x, weight.shape, weight, eps)


def add_rms_norm_reference(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Plain torch truth of `add_rms_norm`: the sum is rounded to the dtype, then normalised."""
    return F.rms_norm(residual.add_(x), weight.shape, weight, eps)


_NORM_FACES = {"reference": rms_norm_reference, "cpp": rms_norm_cpp, "triton": rms_norm_triton}
_ADD_NORM_FACES = {
    "reference": add_rms_norm_reference,
    "cpp": add_rms_norm_cpp,
    "triton": add_rms_norm_triton,
}


def _check(x: Tensor, weight: Tensor) -> None:
    if weight.dim() != 1 or x.shape[-1:] != weight.shape or x.dtype != weight.dtype:
        raise ValueError(
            f"weight must be [{x.shape[-1]}] {x.dtype} for x {list(x.shape)}, got "
            f"{list(weight.shape)} {weight.dtype}"
        )
