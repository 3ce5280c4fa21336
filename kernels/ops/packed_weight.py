"""The base class of packed weights: packing, biases and checks of arguments."""

from __future__ import annotations

import ctypes
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from copy import copy
from typing import Generic, Self, TypeVar

import torch
from torch import Tensor

from batchmill.kernels.cpu.library import default_library

from .grouped_weight import GroupedWeight

#: What a weight is packed from.
Part = TypeVar("Part", Tensor, GroupedWeight)


class PackedWeight(ABC, Generic[Part]):
    """Owns a weight in the C++ kernels' layout: panels of columns, each one stream along k.

    With two parts, gate and up, the product is gated: silu(x G^T + g) * (x U^T + u).

    Attributes:
        out_features: Columns of the result.
        in_features: Columns of its argument.
        packed: The weight, an opaque tensor of 4-byte lanes.
        bias: One float32 per packed column, or None.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        biases: Sequence[Tensor | None],
        library: ctypes.CDLL | None = None,
    ) -> None:
        """Pack one weight, or gate and up.

        Args:
            parts: Weights [out, in] of one shape, one or two.
            biases: One bias [out] or None per part.
            library: The kernels to use; None loads those for this CPU.

        Raises:
            ValueError: the parts differ in shape, or the kernels do not multiply such weights.
            CppBuildError: the C++ kernels cannot be built or loaded.
        """
        check_parts(parts)
        self._library = library or default_library()
        for part in parts:
            self._check(part)
        self.out_features, self.in_features = parts[0].shape
        self._dtype = parts[0].dtype
        self._gated = len(parts) == 2
        self.packed = torch.cat([self._pack(part) for part in parts])
        self.bias = packed_biases(biases, self.out_features, self._library.bm_linear_panel())

    def __call__(self, x: Tensor, *, out: Tensor | None = None) -> Tensor:
        """Multiply.

        Args:
            x: [num_rows, in_features], contiguous, in the weight's dtype.
            out: Receives the result, [num_rows, out_features] contiguous, in the weight's dtype or
                in float32; None allocates it in the weight's dtype.

        Returns:
            [num_rows, out_features].

        Raises:
            ValueError: x or out has another shape, dtype or layout.
        """
        check_argument(x, self.in_features, self._dtype)
        out = result_tensor(out, x, self.out_features)
        self._multiply(x, out)
        return out

    def ungated(self) -> Callable[[Tensor], Tensor]:
        """Return the product of a gated weight without its activation: gate, then up.

        The result takes [num_rows, in_features] and returns [num_rows, 2 * out_features]. It reads
        the same packed weight.
        """
        parts = tuple(map(self._part, range(2)))

        def multiply(x: Tensor) -> Tensor:
            return torch.cat([part(x) for part in parts], dim=1)

        return multiply

    def _part(self, index: int) -> Self:
        """Return gate (0) or up (1) of a gated weight as a weight of its own."""
        part = copy(self)
        part._gated = False
        part.packed = self.packed.chunk(2)[index]
        part.bias = None if self.bias is None else self.bias[index]
        return part

    @property
    @abstractmethod
    def cpp_format(self) -> tuple[int, int, int]:
        """The numbers of `BmFormat` in cpu/decoder.cpp: kind, group size, has zero points."""

    @property
    def _bias_address(self) -> int | None:
        return None if self.bias is None else self.bias.data_ptr()

    @abstractmethod
    def _check(self, part: Part) -> None:
        """Raise ValueError for a weight that these kernels do not multiply."""

    @abstractmethod
    def _pack(self, weight: Part) -> Tensor:
        """Return a weight in the kernels' layout, [num_lanes] int32."""

    @abstractmethod
    def _multiply(self, x: Tensor, out: Tensor) -> None:
        """Write the product into `out`; x and out have been checked."""


def check_parts(parts: Sequence[Tensor] | Sequence[GroupedWeight]) -> None:
    """Refuse weights that cannot be packed together.

    Raises:
        ValueError: there are more than two, or their shapes differ.
    """
    if len(parts) > 2 or any(part.shape != parts[0].shape for part in parts):
        shapes = [list(part.shape) for part in parts]
        raise ValueError(f"a linear has one weight, or two of one shape; got {shapes}")


def packed_biases(biases: Sequence[Tensor | None], out_features: int, panel: int) -> Tensor | None:
    """Return one float32 per packed column of every part, or None if no part has a bias."""
    if all(bias is None for bias in biases):
        return None
    packed = torch.zeros(len(biases), -(-out_features // panel) * panel)
    for row, bias in zip(packed, biases, strict=True):
        if bias is not None:
            row[:out_features] = bias
    return packed


def check_argument(x: Tensor, in_features: int, dtype: torch.dtype) -> None:
    """Refuse activations that C code cannot read as rows.

    Raises:
        ValueError: x is not [num_rows, in_features], contiguous, of that dtype, on the CPU.
    """
    if x.dim() != 2 or x.shape[1] != in_features or not x.is_contiguous():
        raise ValueError(
            f"x must be [num_rows, {in_features}] contiguous, got {list(x.shape)} with "
            f"strides {list(x.stride())}"
        )
    if x.dtype != dtype or x.device.type != "cpu":
        raise ValueError(
            f"x must be {dtype} on the CPU, as the weight was packed; got {x.dtype} on {x.device}"
        )


def result_tensor(out: Tensor | None, x: Tensor, out_features: int) -> Tensor:
    """Return `out` if it is given, or a new tensor in x's dtype.

    Raises:
        ValueError: `out` is not [num_rows, out_features], contiguous, in x's dtype or in float32.
    """
    shape = (len(x), out_features)
    if out is None:
        return torch.empty(shape, dtype=x.dtype)
    if out.shape != shape or out.dtype not in (x.dtype, torch.float32) or not out.is_contiguous():
        raise ValueError(
            f"out must be {list(shape)} {x.dtype} or float32 and contiguous, got "
            f"{list(out.shape)} {out.dtype} with strides {list(out.stride())}"
        )
    return out
