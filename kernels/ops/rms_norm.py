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
from batchmill.kernels.gpu.bindings import add_rms_norm_triton, rms_norm_triton

from .dispatch import Backend, Face, select_face


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, backend: Backend = "auto") -> Tensor:
    """Normalise the last dimension; squares are summed in float32 whatever the dtype.

    Args:
        x: [..., size], contiguous in the last dimension.
        weight: [size], same dtype as x; or float32, and the result is rounded once (Gemma), which
            in other dtypes the C++ face does not do.
        eps: Added to the mean square.
        backend: The face that computes it.

    Returns:
        Same shape and dtype as x, contiguous.

    Raises:
        ValueError: shapes or dtypes disagree.
    """
    _check(x, weight)
    face = select_face("rms_norm", _faces(_NORM_FACES, x, weight), backend, x.device)
    return face(x, weight, eps)


def add_rms_norm(
    x: Tensor, residual: Tensor, weight: Tensor, eps: float, *, backend: Backend = "auto"
) -> Tensor:
    """Add x to the residual, in place, and normalise the sum.

    Args:
        x: [num_tokens, size], contiguous.
        residual: Same shape and dtype as x, contiguous; holds the sum afterwards.
        weight: [size], as in `rms_norm`.
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
    faces = _faces(_ADD_NORM_FACES, x, weight)
    face = select_face("add_rms_norm", faces, backend, x.device)
    return face(x, residual, weight, eps)


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Plain torch truth of `rms_norm`."""
    if weight.dtype != x.dtype:
        return F.rms_norm(x.float(), weight.shape, weight, eps).to(x.dtype)
    return F.rms_norm(x, weight.shape, weight, eps)


def add_rms_norm_reference(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Plain torch truth of `add_rms_norm`: the sum is rounded to the dtype, then normalised."""
    return rms_norm_reference(residual.add_(x), weight, eps)


_NORM_FACES = {"reference": rms_norm_reference, "cpp": rms_norm_cpp, "triton": rms_norm_triton}
_ADD_NORM_FACES = {
    "reference": add_rms_norm_reference,
    "cpp": add_rms_norm_cpp,
    "triton": add_rms_norm_triton,
}


def _faces(faces: Mapping[str, Face], x: Tensor, weight: Tensor) -> Mapping[str, Face]:
    """The faces that multiply by a weight of this dtype."""
    if weight.dtype == x.dtype:
        return faces
    return {name: face for name, face in faces.items() if name != "cpp"}


def _check(x: Tensor, weight: Tensor) -> None:
    dtypes = (x.dtype, torch.float32)
    if weight.dim() != 1 or x.shape[-1:] != weight.shape or weight.dtype not in dtypes:
        raise ValueError(
            f"weight must be [{x.shape[-1]}] {x.dtype} or float32 for x {list(x.shape)}, got "
            f"{list(weight.shape)} {weight.dtype}"
        )
