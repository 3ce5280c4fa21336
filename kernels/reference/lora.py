"""LoRA adapters in plain torch, and what every implementation takes; see `ops/lora.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor


class LoraPair(NamedTuple):
    """What an adapter adds to one matrix.

    Attributes:
        down: [num_parts * rank, in], contiguous: the parts' first factors, one after another.
        up: [rank, out], contiguous: the second factor, transposed, already multiplied by the
            adapter's scale. Parts of the columns belong to parts of `down`.
    """

    down: Tensor
    up: Tensor

    @property
    def num_bytes(self) -> int:
        """Memory of both."""
        return self.down.nbytes + self.up.nbytes


class LoraRows(NamedTuple):
    """The rows of one adapter.

    Attributes:
        rows: [num_rows] int64, ascending; no row is in two groups of a call.
        pair: The adapter's matrices for this product, in the dtype of x.
    """

    rows: Tensor
    pair: LoraPair


def add_lora_reference(
    out: Tensor, x: Tensor, groups: Sequence[LoraRows], widths: Sequence[int]
) -> None:
    """Compute `add_lora` in plain torch."""
    for rows, (down, up) in groups:
        low = F.linear(x.index_select(0, rows), down)
        parts = zip(low.split(len(up), dim=1), up.split(list(widths), dim=1), strict=True)
        start = 0
        for width, (factors, weight) in zip(widths, parts, strict=True):
            added = factors @ weight
            out[:, start : start + width].index_add_(0, rows, added)
            start += width
