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

import torch
from torch import Tensor

from batchmill.kernels.cpu.bindings import add_lora_cpp
from batchmill.kernels.cpu.lora import LoraPairStruct, pair_table
from batchmill.kernels.reference.lora import LoraPair, LoraRows, add_lora_reference

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


_BACKENDS = {
    "reference": add_lora_reference,
    "cpp": add_lora_cpp,
    "triton": lazy_triton("batchmill.kernels.gpu.lora", "add_lora_triton", like=add_lora_reference),
}


def _check(out: Tensor, x: Tensor, groups: Sequence[LoraRows], widths: Sequence[int]) -> None:
    if len(out) != len(x) or out.shape[1] != sum(widths):
        raise ValueError(
            f"out must be [{len(x)}, {sum(widths)}] for x {list(x.shape)} and the widths "
            f"{list(widths)}, got {list(out.shape)}"
        )
    for _, (down, up) in groups:
        rank = len(up)
        if down.shape != (len(widths) * rank, x.shape[1]) or up.shape[1] != out.shape[1]:
            raise ValueError(
                f"an adapter's matrices are {list(down.shape)} and {list(up.shape)}: they must be "
                f"[{len(widths)} * rank, {x.shape[1]}] and [rank, {out.shape[1]}]"
            )
