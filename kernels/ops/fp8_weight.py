"""Weights in eight-bit floats with one scale per column of output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from batchmill.kernels.reference.fp8_rows import FP8, quantize_fp8_reference

#: Rows of a weight that are quantized at a time, because each part is widened to float32.
_ROWS_PER_PART = 1024


@dataclass(frozen=True, slots=True)
class Fp8Weight:
    """A weight `values * scales`.

    Attributes:
        values: [out, in] float8_e4m3fn.
        scales: [out, 1] float32.
        dtype: Number format of the products.
    """

    values: Tensor
    scales: Tensor
    dtype: torch.dtype

    @property
    def shape(self) -> torch.Size:
        """[out, in]."""
        return self.values.shape

    @property
    def device(self) -> torch.device:
        """Device of the numbers."""
        return self.values.device

    def dense(self) -> Tensor:
        """Return the weight, [out, in] in the dtype of its products."""
        weight = torch.empty(self.shape, dtype=self.dtype, device=self.device)
        for start in range(0, len(weight), _ROWS_PER_PART):
            rows = slice(start, start + _ROWS_PER_PART)
            weight[rows] = self.values[rows].float() * self.scales[rows]
        return weight

    def to(self, device: torch.device) -> Fp8Weight:
        """Return the weight on a device."""
        return replace(self, values=self.values.to(device), scales=self.scales.to(device))

    def select_rows(self, order: Tensor) -> Fp8Weight:
        """Return the weight with its rows in another order, [out] int64."""
        values = self.values.view(torch.uint8).index_select(0, order).view(FP8)
        return replace(self, values=values, scales=self.scales.index_select(0, order))


def quantize_fp8_weight(weight: Tensor) -> Fp8Weight:
    """Quantize a weight [out, in] by its columns of output, in plain torch on any device."""
    parts = [quantize_fp8_reference(part) for part in torch.split(weight, _ROWS_PER_PART)]
    # As bytes: not every operation knows eight-bit floats.
    values = torch.cat([part.values.view(torch.uint8) for part in parts])
    return Fp8Weight(values.view(FP8), torch.cat([part.scales for part in parts]), weight.dtype)


def join_fp8_rows(parts: Sequence[Fp8Weight]) -> Fp8Weight:
    """Return one weight of all rows of several."""
    if len(parts) == 1:
        return parts[0]
    values = torch.cat([part.values.view(torch.uint8) for part in parts]).view(FP8)
    return replace(parts[0], values=values, scales=torch.cat([part.scales for part in parts]))
