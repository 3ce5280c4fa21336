"""MXFP4 as gpt-oss stores it: the experts of a layer together, in blocks of 32 inputs.

Source: OCP Microscaling Formats (MX) Specification 1.0, section 5.4; the names and the layout are
those of OpenAI's gpt-oss, as in transformers' `mxfp4`.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

import torch
from torch import Tensor

from .dense import Tiles, dense_weight
from .fp4 import power_of_two, unpack_fp4
from .module import Layout, StoredModule
from .scheme import Settings

_BLOCKS: Final = "_blocks"
_SCALES: Final = "_scales"
#: Numbers that share a scale.
_BLOCK_SIZE: Final = 32


class Mxfp4:
    """The matrices of experts in MXFP4; all others are dense."""

    name: Final = "mxfp4"
    parts: Final = (_BLOCKS, _SCALES)
    ignored_parts: Final = ()

    def __init__(self, settings: Settings) -> None:
        """Keep nothing: which matrices are dense shows in what is stored."""

    def layout(self, module: str, stored: Collection[str]) -> Layout | None:
        """Return how a weight is stored; see `Scheme`."""
        return Layout(_unpack, self.parts, result="")


def _unpack(module: StoredModule, dtype: torch.dtype) -> Tensor:
    """Unpack the matrices of all experts, [experts, in, out] as a dense checkpoint has them."""
    blocks = module.take(_BLOCKS, (torch.uint8,), None, None, None, _BLOCK_SIZE // 2)
    num_experts, num_rows, num_blocks = blocks.shape[:3]
    stored = module.take(_SCALES, (torch.uint8,), num_experts, num_rows, num_blocks)
    num_columns = num_blocks * _BLOCK_SIZE
    tiles = Tiles.of(1, _BLOCK_SIZE, num_columns)
    experts = torch.empty(num_experts, num_rows, num_columns, dtype=dtype)
    for expert, packed, exponents in zip(experts, blocks, stored, strict=True):
        scales = power_of_two(exponents)

        def rows_of(rows: slice, packed: Tensor = packed, scales: Tensor = scales) -> Tensor:
            return unpack_fp4(packed[rows].flatten(1)) * tiles.spread(scales, rows)

        expert.copy_(dense_weight((num_rows, num_columns), dtype, rows_of))
    return experts.transpose(1, 2)
