"""Adds what LoRA adapters contribute to a matrix product, for rows grouped by adapter.

    out[rows, part] += (x[rows] D_part^T) U_part^T     for each group and each part of the columns

A fused matrix (queries, keys and values; gate and up) has one part for each of the matrices that it
was made from. An adapter's rank is the same in all parts of a matrix: a smaller one is padded with
zeros, and so is a part that the adapter leaves alone.

Source: LoRA, Hu et al. 2021, section 4.1; rows of a batch grouped by adapter: Punica, Chen et al.
2023, section 4.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from batchmill.kernels.cpu.bindings import add_lora_cpp
from batchmill.kernels.cpu.lora import LoraPairStruct, pair_table
from batchmill.kernels.reference.lora import (
    LoraPair,
    LoraRows,
    LoraTiles,
    add_lora_reference,
    add_lora_tiles_reference,
)

from .dispatch import Backend, lazy_triton, select_backend


@dataclass(frozen=True)
class LoraWeights:
    """What an adapter adds to a model.

    Attributes:
        layers: For each layer, a pair for each of its matrices; None for those left alone.
    """

    layers: tuple[tuple[LoraPair | None, ...], ...]

    @cached_property
    def dtype(self) -> torch.dtype | None:
        """Number format of the matrices; None if there are none."""
        pairs = (pair for layer in self.layers for pair in layer if pair is not None)
        return next((pair.up.dtype for pair in pairs), None)

    @cached_property
    def table(self) -> ctypes.Array[LoraPairStruct]:
        """The pairs' addresses, for C++ code; valid while this object lives."""
        return pair_table([pair for layer in self.layers for pair in layer])

    @cached_property
    def addresses(self) -> NDArray[np.int64]:
        """A row of `LoraTiles.pairs` for each matrix, [num_matrices, 3]; valid as above."""
        pairs = [pair for layer in self.layers for pair in layer]
        return np.array(
            [
                (0, 0, 0) if it is None else (it.down.data_ptr(), it.up.data_ptr(), len(it.up))
                for it in pairs
            ],
            dtype=np.int64,
        ).reshape(-1, 3)


def add_lora(
    out: Tensor,
    x: Tensor,
    groups: Sequence[LoraRows],
    widths: Sequence[int],
    *,
    backend: Backend = "auto",
) -> None:
    """Add the groups' contributions to a product, in place.

    Args:
        out: [num_rows, sum(widths)], contiguous: the product without adapters.
        x: [num_rows, in], contiguous: what was multiplied.
        groups: The rows of each adapter.
        widths: Columns of each part.
        backend: The implementation to use; `auto` takes the fastest.

    Raises:
        ValueError: the shapes of out, x or a pair do not match.
    """
    _check(out, x, groups, widths)
    select_backend("add_lora", _BACKENDS, backend, out.device)(out, x, groups, widths)


def add_lora_tiles(
    out: Tensor,
    x: Tensor,
    tiles: LoraTiles,
    widths: Sequence[int],
    *,
    backend: Backend = "auto",
) -> None:
    """Compute `add_lora` for tiles of rows, whose number and sizes are read on the device.

    So a graph that has recorded the call computes whatever rows and adapters the tiles name when it
    is replayed.

    Args:
        out: [num_rows, sum(widths)], contiguous: the product without adapters.
        x: [num_rows, in], contiguous: what was multiplied.
        tiles: The rows of the adapters; their matrices must suit out and x, and have x's dtype.
        widths: Columns of each part.
        backend: The implementation to use; `auto` takes the fastest.

    Raises:
        ValueError: the shapes of out, x or the tiles do not match.
    """
    _check_product(out, x, widths)
    if tiles.pairs.shape != (len(tiles.starts) - 1, 3):
        raise ValueError(
            f"{len(tiles.starts)} starts need pairs of [{len(tiles.starts) - 1}, 3], got "
            f"{list(tiles.pairs.shape)}"
        )
    select_backend("add_lora_tiles", _TILES_BACKENDS, backend, out.device)(out, x, tiles, widths)


_BACKENDS = {
    "reference": add_lora_reference,
    "cpp": add_lora_cpp,
    "triton": lazy_triton("batchmill.kernels.gpu.lora", "add_lora_triton", like=add_lora_reference),
}
_TILES_BACKENDS = {
    "reference": add_lora_tiles_reference,
    "triton": lazy_triton(
        "batchmill.kernels.gpu.lora", "add_lora_tiles_triton", like=add_lora_tiles_reference
    ),
}


def _check(out: Tensor, x: Tensor, groups: Sequence[LoraRows], widths: Sequence[int]) -> None:
    _check_product(out, x, widths)
    for _, (down, up) in groups:
        rank = len(up)
        if down.shape != (len(widths) * rank, x.shape[1]) or up.shape[1] != out.shape[1]:
            raise ValueError(
                f"an adapter's matrices are {list(down.shape)} and {list(up.shape)}: they must be "
                f"[{len(widths)} * rank, {x.shape[1]}] and [rank, {out.shape[1]}]"
            )


def _check_product(out: Tensor, x: Tensor, widths: Sequence[int]) -> None:
    if len(out) != len(x) or out.shape[1] != sum(widths):
        raise ValueError(
            f"out must be [{len(x)}, {sum(widths)}] for x {list(x.shape)} and the widths "
            f"{list(widths)}, got {list(out.shape)}"
        )
