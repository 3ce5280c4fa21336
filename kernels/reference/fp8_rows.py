"""Eight-bit floats: their format and limits, and rows of them that each have a scale.

    quantize_fp8(x)[row] = round(x[row] / scale[row]),    scale[row] = max |x[row]| / 448

Source: FP8 Formats for Deep Learning, Micikevicius et al. 2022, sections 3 and 4.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

#: The format of weights, activations and KV caches in eight bits: four bits of exponent, three of
#: mantissa.
FP8 = torch.float8_e4m3fn
#: Its largest finite number.
FP8_MAX = 448.0
#: A row whose largest magnitude is not above this counts as zeros: 448 / max must be finite.
LEAST_MAX = 1e-30


class Fp8Rows(NamedTuple):
    """Quantized rows.

    Attributes:
        values: [num_rows, size] float8_e4m3fn.
        scales: [num_rows, 1] float32: the value of one unit of each row.
    """

    values: Tensor
    scales: Tensor


def quantize_fp8_reference(x: Tensor) -> Fp8Rows:
    """Quantize each row by its largest magnitude; see `quantize_fp8`."""
    wide = x.float()
    most = wide.abs().amax(dim=-1, keepdim=True)
    is_scaled = most.isfinite() & (most > LEAST_MAX)
    # A tensor, because torch may divide by a number, or divide a number, with a reciprocal.
    largest = torch.full_like(most, FP8_MAX)
    values = torch.where(is_scaled, wide * (largest / most), 0.0).to(FP8)
    scales = torch.where(is_scaled, most / largest, 0.0)
    return Fp8Rows(values, torch.where(most.isfinite(), scales, torch.nan))
