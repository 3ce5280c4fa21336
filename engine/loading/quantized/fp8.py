"""Weights in 8-bit floats (e4m3) that are multiplied by a scale: DeepSeek's, FBGEMM's, AutoFP8's.

A scale belongs to a block of numbers (`weight_scale_inv`, which is a factor despite its name), to a
row, or to the whole weight. Settings of activations are not used: with the weights unpacked they
stay in the dtype, and in "fp8" each row has its own scale; both are more exact.

Source: DeepSeek-V3 Technical Report, 2024, section 3.3.2.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import Final

import torch
from torch import Tensor

from batchmill.kernels.ops.fp8_weight import Fp8Weight

from .dense import Tiles, dense_weight
from .module import Layout, StoredModule
from .scheme import Settings, choose, refusal

WEIGHT, SCALE = ".weight", ".weight_scale"
_BLOCK_SCALE: Final = ".weight_scale_inv"
#: Types of scales; e8m0 are powers of two.
_SCALE_TYPES: Final = (torch.float32, torch.bfloat16, torch.float16, torch.float8_e8m0fnu)


class Fp8:
    """Weights that are e4m3 with scales of blocks, rows or tensors."""

    name: Final = "fp8"
    parts: Final = (WEIGHT, SCALE, _BLOCK_SCALE)
    ignored_parts: Final = (
        *(".input_scale", ".activation_scale", ".input_scale_ub"),
        *(".k_scale", ".v_scale"),
    )

    def __init__(self, settings: Settings) -> None:
        """Read the size of the blocks.

        Raises:
            UnsupportedModelError: the weights are stored in a way that is not read.
        """
        choose(self.name, {"fmt": settings.get("fmt") or "e4m3"}, "fmt", ("e4m3",))
        block = settings.get("weight_block_size")
        if block is not None and not is_block(block):
            raise refusal(self.name, "weight_block_size", block, "it must be two sizes above 0")
        self._block: tuple[int, int] | None = None if block is None else tuple(block)

    def layout(self, module: str, stored: Collection[str]) -> Layout | None:
        """Return how a weight is stored; see `Scheme`."""
        if set(stored) == {WEIGHT}:
            return None
        scale = _BLOCK_SCALE if _BLOCK_SCALE in stored or self._block is not None else SCALE

        return Layout(
            partial(unpack_fp8, scale=scale, block=self._block),
            (WEIGHT, scale),
            keep_fp8=partial(keep_fp8, scale=scale, block=self._block),
        )


def is_block(block: object) -> bool:
    """Return whether a setting is the number of rows and columns of a block."""
    return (
        isinstance(block, list | tuple)
        and len(block) == 2
        and all(isinstance(size, int) and size > 0 for size in block)
    )


def unpack_fp8(
    module: StoredModule, dtype: torch.dtype, scale: str, block: tuple[int, int] | None
) -> Tensor:
    """Unpack a weight.

    Args:
        module: Its stored tensors.
        dtype: Of the result.
        scale: The ending of the scales' name.
        block: Rows and columns that share a scale; None is rows, or the whole weight.
    """
    stored, factors, tiles = _read(module, scale, block)

    def rows_of(rows: slice) -> Tensor:
        return stored[rows].float() * tiles.spread(factors, rows)

    return dense_weight((stored.shape[0], stored.shape[1]), dtype, rows_of)


def keep_fp8(
    module: StoredModule, dtype: torch.dtype, scale: str, block: tuple[int, int] | None
) -> Fp8Weight | None:
    """Return a weight as it is stored; None if its scales are of blocks. See `unpack_fp8`."""
    stored, factors, _ = _read(module, scale, block)
    return fp8_rows(stored, factors, dtype)


def fp8_rows(stored: Tensor, factors: Tensor, dtype: torch.dtype) -> Fp8Weight | None:
    """Return stored numbers with scales of rows, or of the whole weight; None for other scales.

    Args:
        stored: [out, in] float8_e4m3fn.
        factors: A table of float32 scales.
        dtype: Of the products.
    """
    if factors.shape not in ((1, 1), (len(stored), 1)):
        return None
    return Fp8Weight(stored, factors.expand(len(stored), 1).contiguous(), dtype)


def _read(
    module: StoredModule, scale: str, block: tuple[int, int] | None
) -> tuple[Tensor, Tensor, Tiles]:
    """Return the stored numbers, a table of float32 scales, and what each scale belongs to."""
    stored = module.take(WEIGHT, (torch.float8_e4m3fn,), None, None)
    num_rows, num_columns = stored.shape
    if module.tensors[scale].numel() == 1:
        scales = module.number(scale, _SCALE_TYPES).reshape(1, 1)
        tiles = Tiles.of(num_rows, num_columns, num_columns)
    elif block is not None:
        tiles = Tiles.of(*block, num_columns)
        table = (-(-num_rows // block[0]), -(-num_columns // block[1]))
        scales = module.take(scale, _SCALE_TYPES, *table)
    else:
        column = (1,) if module.tensors[scale].dim() == 2 else ()
        scales = module.take(scale, _SCALE_TYPES, num_rows, *column).reshape(-1, 1)
        tiles = Tiles.of(1, num_columns, num_columns)
    return stored, scales.float(), tiles
