"""Matrix products of 8-bit weights and activations, with exact 32-bit sums.

    linear(x) = a b (q_x q_w^T) + bias,    q = round(rotate(v) / step),    step = max |v| / 127

Each output column of a weight has a step `b`, computed once; each row of activations has a step
`a`, computed when it is multiplied. A row's result therefore depends on that row alone, in any
batch, and the integers are the same on every instruction set and in the plain-torch reference.

Both factors are rotated first, by a Hadamard transform of blocks of up to 64 neighbours. Their
product stays the same, and one large activation no longer costs the others their digits: measured
on SmolLM2-135M, the divergence from unquantized logits is an eighth of that without rotation.

Source: SmoothQuant, Xiao et al. 2023, section 2 (a step per token and per output channel);
QuaRot, Ashkboos et al. 2024, section 4 (Hadamard transforms at run time).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .dispatch import Backend
from .linear import Linear
from .packed_weight import PackedWeight

#: Change it with anything that changes a product: outputs of another version are not resumed.
INT8_VERSION = "int8-1"
#: Largest magnitude of a quantized value.
_LEVELS = 127
#: A row whose largest magnitude is not above this counts as zeros: 127 / max must be finite.
_LEAST_MAX = 1e-30
#: With more input features, a sum of products of 127 * 127 would not fit into 32 bits.
_MAX_IN_FEATURES = (2**31 - 1) // _LEVELS**2
#: Largest number of neighbours that are rotated together.
_MAX_BLOCK = 64
_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def make_int8_linear(
    weight: Tensor, bias: Tensor | None = None, *, backend: Backend = "auto"
) -> Linear:
    """Quantize a weight and return a callable that multiplies by it.

    The callable does not keep the weight itself: once the caller drops it, memory holds one byte
    per number.

    Args:
        weight: [out, in], on the CPU.
        bias: [out], or None.
        backend: `auto` and `cpp` are the C++ kernels, `reference` is plain torch, and slow.

    Raises:
        ValueError: the weight is on another device, or its sums would not fit into 32 bits.
        CppBuildError: the C++ kernels cannot be built or loaded.
    """
    if backend == "reference":
        return Int8Reference(weight, bias)
    if backend not in ("auto", "cpp"):
        raise ValueError(
            f"int8_linear has no {backend!r} backend; it has 'cpp', 'reference': name one of "
            "these, or 'auto'"
        )
    return Int8Linear([weight], [bias])


def block_length(in_features: int) -> int:
    """Return how many neighbours are rotated together.

    This is the largest power of two that is at most 64 and divides `in_features`.
    """
    return min(in_features & -in_features, _MAX_BLOCK)


def rotate_rows(x: Tensor) -> Tensor:
    """Rotate each block by a Hadamard transform that is not normalised, in plain torch.

    Args:
        x: [num_rows, size].

    Returns:
        [num_rows, size] float32. Every sum is rounded in a fixed order, neighbours first.
    """
    rotated, distance = x.float(), 1
    while distance < block_length(x.shape[-1]):
        pairs = rotated.view(len(x), x.shape[-1] // (2 * distance), 2, distance)
        first, second = pairs.unbind(2)
        rotated = torch.stack([first + second, first - second], dim=2).view(x.shape)
        distance *= 2
    return rotated


def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rotate and quantize each row by its largest magnitude, ties to even, in plain torch.

    Args:
        x: [num_rows, size].

    Returns:
        The integers, [num_rows, size] int8, and the size of each row's step, [num_rows] float32.
        A row that is not finite has the step NaN and zeros as integers.
    """
    values = rotate_rows(x)
    most = values.abs().amax(dim=-1)
    # A tensor, because torch computes number / tensor as number * (1 / tensor).
    levels = torch.full_like(most, _LEVELS)
    steps = torch.where(most.isfinite() & (most > _LEAST_MAX), levels / most, 0.0)[:, None]
    quantized = torch.where(steps == 0.0, 0.0, values * steps).round().to(torch.int8)
    return quantized, torch.where(most.isfinite(), most / _LEVELS, torch.nan)


class Int8Reference:
    """Plain-torch reference of `Int8Linear`; its sums are exact, because float64 has 53 bits."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        """Quantize a weight [out, in]; bias is [out] or None.

        Raises:
            ValueError: as for `Int8Linear`.
        """
        _check_weight(weight)
        self.quantized, steps = quantize_rows(weight)
        # Rotating both factors multiplies their product by the block length.
        self.scales = steps / block_length(weight.shape[1])
        self.bias = None if bias is None else bias.float()

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply [num_rows, in]; the result is [num_rows, out] in x's dtype."""
        quantized, scales = quantize_rows(x)
        sums = (quantized.double() @ self.quantized.double().T).float()
        product = sums * scales[:, None] * self.scales
        return (product if self.bias is None else product + self.bias).to(x.dtype)


class Int8Linear(PackedWeight[Tensor]):
    """A weight that is quantized when it is packed, with one step per column.

    Takes float32, bfloat16 and float16 weights on the CPU. Raises ValueError for others, and if
    there are too many input features for sums of 32 bits. Rows of x that are not finite yield NaN.
    """

    @property
    def cpp_format(self) -> tuple[int, int, int]:
        """See `PackedWeight`."""
        return 1, 0, 0

    def _check(self, part: Tensor) -> None:
        _check_weight(part)

    def _pack(self, weight: Tensor) -> Tensor:
        weight = weight.contiguous()
        size = tuple(weight.shape)
        packed = torch.empty(self._library.bm_int8_packed_lanes(*size), dtype=torch.int32)
        self._library.bm_int8_pack(
            weight.data_ptr(), packed.data_ptr(), *size, _DTYPES[weight.dtype],
            torch.get_num_threads(),
        )  # fmt: skip
        return packed

    def _multiply(self, x: Tensor, out: Tensor) -> None:
        num_rows, threads = len(x), torch.get_num_threads()
        quantized, scales = int8_buffers(num_rows, self.in_features)
        self._library.bm_int8_quantize(
            x.data_ptr(), quantized.data_ptr(), scales.data_ptr(), num_rows, self.in_features,
            self.in_features, _DTYPES[x.dtype], threads,
        )  # fmt: skip
        self._library.bm_int8_linear(
            out.data_ptr(), quantized.data_ptr(), scales.data_ptr(), self.packed.data_ptr(),
            self._bias_address, num_rows, self.out_features,
            self.in_features, self.out_features, self._gated, _DTYPES[out.dtype], threads,
        )  # fmt: skip


def int8_buffers(num_rows: int, in_features: int) -> tuple[Tensor, Tensor]:
    """Allocate quantized rows: their bytes, each row padded to whole lanes, and their steps."""
    return (
        torch.empty((num_rows, -(-in_features // 4) * 4), dtype=torch.int8),
        torch.empty(num_rows),
    )


def _check_weight(weight: Tensor) -> None:
    if weight.device.type != "cpu" or weight.dtype not in _DTYPES:
        raise ValueError(
            f"int8 products are computed on the CPU, of float32, bfloat16 or float16 weights; got "
            f"{weight.dtype} on {weight.device}"
        )
    if weight.shape[1] > _MAX_IN_FEATURES:
        raise ValueError(
            f"the weight has {weight.shape[1]} input features; with more than {_MAX_IN_FEATURES} a "
            "sum of products of 8-bit integers does not fit into 32 bits: leave it unquantized"
        )
