"""Rows of numbers in eight bits, each with a scale of its own.

    quantize_fp8(x)[row] = round(x[row] / scale[row]),    scale[row] = max |x[row]| / 448

448 is the largest number that float8_e4m3fn holds. A row's numbers and scale depend on that row
alone, whatever batch it is in.

Source: FP8 Formats for Deep Learning, Micikevicius et al. 2022, sections 3 and 4.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from batchmill.kernels.gpu.bindings import quantize_fp8_triton

from .dispatch import Backend, select_face
from .write_kv import FP8, FP8_MAX

#: A row whose largest magnitude is not above it counts as zeros: 448 / max must be finite.
LEAST_MAX = 1e-30


class Fp8Rows(NamedTuple):
    """Quantized rows.

    Attributes:
        values: [num_rows, size] float8_e4m3fn.
        scales: [num_rows, 1] float32: what one unit of each row stands for.
    """

    values: Tensor
    scales: Tensor


def quantize_fp8(x: Tensor, *, backend: Backend = "auto") -> Fp8Rows:
    """Quantize each row by its largest magnitude, ties to even.

    Args:
        x: [num_rows, size], contiguous in the last dimension.
        backend: The face that computes it.

    Returns:
        The rows; one of zeros has the scale 0; one that is not finite has the scale NaN and zeros
        for numbers, so that whatever it is multiplied by becomes NaN, and no other row notices.

    Raises:
        ValueError: x is no matrix.
    """
    if x.dim() != 2:
        raise ValueError(f"x must be [num_rows, size], got {list(x.shape)}")
    return select_face("quantize_fp8", _FACES, backend, x.device)(x)


def quantize_fp8_reference(x: Tensor) -> Fp8Rows:
    """Plain torch truth of `quantize_fp8`."""
    wide = x.float()
    most = wide.abs().amax(dim=-1, keepdim=True)
    counts = most.isfinite() & (most > LEAST_MAX)
    # A tensor, because torch may compute a division by or of a number as one and a product.
    largest = torch.full_like(most, FP8_MAX)
    values = torch.where(counts, wide * (largest / most), 0.0).to(FP8)
    scales = torch.where(counts, most / largest, 0.0)
    return Fp8Rows(values, torch.where(most.isfinite(), scales, torch.nan))


_FACES: dict[str, Callable[[Tensor], Fp8Rows]] = {
    "reference": quantize_fp8_reference,
    "triton": lambda x: Fp8Rows(*quantize_fp8_triton(x)),
}
