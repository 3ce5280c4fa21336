"""Matrix products of 4-bit weights in groups and 8-bit activations in blocks.

    linear(x) = sum over blocks of  scale step (q_x q_w^T - zero sum(q_x))  + bias

A weight is `scale (q - zero)` with integers `q` from 0 to 15. A group of 32 or more neighbours of a
column shares a scale and a zero point, as GPTQ, AWQ and compressed-tensors store them; their
integers are kept. Scales and zero points are rounded to halves, after a power of two per column.
Each block of 32 activations of a row has a step, computed when it is multiplied, so that a large
activation makes only its own block coarse. A row's result depends on that row alone, in any batch.

Source: the blocks of llama.cpp's Q4_1 and Q8_0; AWQ, Lin et al. 2023, section 3 (groups).
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from .dispatch import Backend
from .grouped_weight import BLOCK, GroupedWeight, filled_zeros, quantize_groups
from .linear import Linear
from .packed_weight import PackedWeight

#: Change it with anything that changes a product: outputs of another version are not resumed.
INT4_VERSION = "int4-1"
#: Largest magnitude of a quantized activation.
_LEVELS = 127
#: A block whose largest magnitude is not above this counts as zeros: 127 / max must be finite.
_LEAST_MAX = 1e-30
_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def make_int4_linear(
    weight: Tensor | GroupedWeight, bias: Tensor | None = None, *, backend: Backend = "auto"
) -> Linear:
    """Return a callable that multiplies by a weight of 4 bits.

    Args:
        weight: [out, in] on the CPU; a dense one is quantized in groups of 32.
        bias: [out], or None.
        backend: `auto` and `cpp` are the C++ kernels, `reference` is plain torch, and slow.

    Raises:
        ValueError: the weight is on another device or in another dtype.
        CppBuildError: the C++ kernels cannot be built or loaded.
    """
    if backend == "reference":
        return Int4Reference(weight, bias)
    if backend not in ("auto", "cpp"):
        raise ValueError(
            f"int4_linear has no {backend!r} backend; it has 'cpp', 'reference': name one of "
            "these, or 'auto'"
        )
    return Int4Linear([weight], [bias])


def quantize_blocks(x: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize each block of each row by its largest magnitude, ties to even, in plain torch.

    Args:
        x: [num_rows, size].

    Returns:
        The integers, [num_rows, num_blocks, 32] float32, and the blocks' steps, [num_rows,
        num_blocks] float32. A block that is not finite has the step NaN and zeros as integers.
    """
    padded = torch.nn.functional.pad(x.float(), (0, -x.shape[1] % BLOCK))
    values = padded.unflatten(1, (padded.shape[1] // BLOCK, BLOCK))
    most = values.abs().amax(dim=-1)
    # A tensor, because torch computes number / tensor as number * (1 / tensor).
    levels = torch.full_like(most, _LEVELS)
    steps = torch.where(most.isfinite() & (most > _LEAST_MAX), levels / most, 0.0)[..., None]
    quantized = torch.where(steps == 0.0, 0.0, values * steps).round()
    return quantized, torch.where(most.isfinite(), most / _LEVELS, torch.nan)


class Int4Reference:
    """Plain-torch reference of `Int4Linear`."""

    def __init__(self, weight: Tensor | GroupedWeight, bias: Tensor | None) -> None:
        """Quantize a weight [out, in] unless it is; bias is [out] or None.

        Raises:
            ValueError: as for `Int4Linear`.
        """
        self._dense = _grouped(weight).dense()
        self._bias = None if bias is None else bias.float()

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply [num_rows, in]; the result is [num_rows, out] in x's dtype."""
        quantized, steps = quantize_blocks(x)
        rounded = (quantized * steps[..., None]).flatten(1)[:, : x.shape[1]]
        return torch.nn.functional.linear(rounded, self._dense, self._bias).to(x.dtype)


class Int4Linear(PackedWeight[GroupedWeight]):
    """A weight of 4-bit integers; a dense one is quantized when it is packed.

    Takes float32, bfloat16 and float16 weights and `GroupedWeight`s on the CPU, and raises
    ValueError for others. Rows of x that are not finite yield NaN.
    """

    def __init__(
        self,
        parts: Sequence[Tensor | GroupedWeight],
        biases: Sequence[Tensor | None],
        library: ctypes.CDLL | None = None,
    ) -> None:
        """Pack one weight, or gate and up; see `PackedWeight`.

        Raises:
            ValueError: as for `PackedWeight`, or the groups of the parts differ in size.
        """
        grouped = [_grouped(part) for part in parts]
        self._group_size = grouped[0].group_size
        self._has_zeros = any(part.zeros is not None for part in grouped)
        super().__init__(grouped, biases, library)

    @property
    def cpp_format(self) -> tuple[int, int, int]:
        """See `PackedWeight`."""
        return 2, self._group_size, self._has_zeros

    def _check(self, part: GroupedWeight) -> None:
        if part.group_size != self._group_size:
            raise ValueError(
                f"weights that are packed together have groups of one size; got "
                f"{self._group_size} and {part.group_size}"
            )

    def _pack(self, weight: GroupedWeight) -> Tensor:
        size = (*weight.shape, self._group_size)
        packed = torch.empty(
            self._library.bm_int4_packed_lanes(*size, self._has_zeros), dtype=torch.int32
        )
        q, scales = weight.q.contiguous(), weight.scales.contiguous()
        zeros = filled_zeros(weight).contiguous() if self._has_zeros else None
        self._library.bm_int4_pack(
            q.data_ptr(), scales.data_ptr(), None if zeros is None else zeros.data_ptr(),
            packed.data_ptr(), *size, torch.get_num_threads(),
        )  # fmt: skip
        return packed

    def _multiply(self, x: Tensor, out: Tensor) -> None:
        num_rows, threads = len(x), torch.get_num_threads()
        quantized, blocks = int4_buffers(num_rows, self.in_features)
        self._library.bm_int4_quantize(
            x.data_ptr(), quantized.data_ptr(), blocks.data_ptr(), num_rows, self.in_features,
            self.in_features, _DTYPES[x.dtype], threads,
        )  # fmt: skip
        self._library.bm_int4_linear(
            out.data_ptr(), quantized.data_ptr(), blocks.data_ptr(), self.packed.data_ptr(),
            self._bias_address, num_rows, self.out_features, self.in_features, self._group_size,
            self._has_zeros, self.out_features, self._gated, _DTYPES[out.dtype], threads,
        )  # fmt: skip


def int4_buffers(num_rows: int, in_features: int) -> tuple[Tensor, Tensor]:
    """Allocate quantized rows: their bytes, in whole blocks, and each block's step and sum."""
    num_blocks = -(-in_features // BLOCK)
    return (
        torch.empty((num_rows, num_blocks * BLOCK), dtype=torch.int8),
        torch.empty((num_rows, num_blocks, 2)),
    )


def _grouped(weight: Tensor | GroupedWeight) -> GroupedWeight:
    if weight.device.type != "cpu" or weight.dtype not in _DTYPES:
        raise ValueError(
            f"int4 products are computed on the CPU, with float32, bfloat16 or float16; got "
            f"{weight.dtype} on {weight.device}"
        )
    if not isinstance(weight, GroupedWeight):
        return quantize_groups(weight)
    size, num_columns = weight.group_size, weight.shape[1]
    if size % BLOCK or (size != BLOCK and num_columns % size):
        raise ValueError(
            f"the groups of a weight with {num_columns} inputs have {size} of them: it must be 32, "
            "or a multiple of 32 that divides the inputs"
        )
    return weight
