"""Matrix products of weights and activations in eight-bit floats, on tensor cores.

    linear(x) = a b (q_x q_w^T) + bias,    q = round(v / scale),    scale = max |v| / 448

Each output column of a weight has a scale `b`, computed once; each row of activations has a scale
`a`, computed when it is multiplied. A row that is not finite yields NaN.

The product is `torch._scaled_mm` with fast accumulation: its tensor cores add up with fewer bits
than float32 has. The plain-torch reference adds up in float32.

Source: FP8 Formats for Deep Learning, Micikevicius et al. 2022, sections 3 and 4.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from batchmill.kernels.reference.fp8_rows import Fp8Rows, quantize_fp8_reference

from .dispatch import Backend
from .fp8_quantize import quantize_fp8
from .fp8_weight import Fp8Weight, quantize_fp8_weight
from .linear import Linear

#: Change it with anything that changes a product: outputs of another version are not resumed.
FP8_VERSION = "fp8-1"
#: Both sizes of a weight must be multiples of this, for `torch._scaled_mm`.
FP8_MULTIPLE = 16
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def make_fp8_linear(
    weight: Tensor | Fp8Weight, bias: Tensor | None = None, *, backend: Backend = "auto"
) -> Linear:
    """Quantize a weight, unless it is in fp8, and return a callable that multiplies by it.

    The callable does not keep a dense weight: once the caller drops it, memory holds one byte per
    number.

    Args:
        weight: [out, in], both multiples of 16.
        bias: [out], or None.
        backend: `auto` is `Fp8Linear` on a GPU; `triton` is `Fp8Linear` on any device, for tests
            without a GPU; `reference` is plain torch, and slow.

    Raises:
        ValueError: the weight's sizes or dtype do not allow it, or its device has no fp8 products.
    """
    if backend == "reference":
        return Fp8Reference(weight, bias)
    if backend not in ("auto", "triton"):
        raise ValueError(f"fp8 products have no {backend!r} backend; use 'triton' or 'reference'")
    if backend == "auto" and weight.device.type != "cuda":
        raise ValueError(
            f"fp8 products are computed on a GPU, got a weight on {weight.device}: use int8 on a "
            "CPU, or backend='reference'"
        )
    return Fp8Linear(weight, bias, backend=backend)


class Fp8Reference:
    """Plain-torch reference of `Fp8Linear`: it sums in float32 and accepts any dtype."""

    takes_fp8_rows: Final = True

    def __init__(self, weight: Tensor | Fp8Weight, bias: Tensor | None) -> None:
        """Quantize a weight [out, in]; bias is [out] or None.

        Raises:
            ValueError: as for `Fp8Linear`.
        """
        quantized = _quantized(weight)
        self._values, self._scales = quantized.values, quantized.scales
        self._bias = None if bias is None else bias.float()
        self._dtype = weight.dtype

    def __call__(self, x: Tensor | Fp8Rows) -> Tensor:
        """Multiply [num_rows, in]; the result is [num_rows, out] in the weight's dtype."""
        values, scales = x if isinstance(x, Fp8Rows) else quantize_fp8_reference(x)
        product = values.float() @ self._values.float().T * scales * self._scales.T
        return (product if self._bias is None else product + self._bias).to(self._dtype)


class Fp8Linear:
    """A quantized weight, multiplied by `torch._scaled_mm` with one scale per row and per column.

    Takes any number of rows: torch uses cuBLAS or CUTLASS, depending on the GPU, and neither needs
    padding. Reads nothing on the host, so a CUDA graph can contain it.
    """

    takes_fp8_rows: Final = True

    def __init__(
        self, weight: Tensor | Fp8Weight, bias: Tensor | None, *, backend: Backend = "auto"
    ) -> None:
        """Quantize a weight, unless it is in fp8.

        Args:
            weight: [out, in].
            bias: [out] bfloat16, or None.
            backend: The implementation that quantizes the activations.

        Raises:
            ValueError: a size is not a multiple of 16, or the dtype cannot be quantized.
        """
        quantized = _quantized(weight)
        # [in, out], with contiguous columns: `_scaled_mm` needs it.
        self._weight = quantized.values.t()
        self._scales = quantized.scales.t().contiguous()  # [1, out]
        self._bias = bias
        self._backend: Backend = backend

    def __call__(self, x: Tensor | Fp8Rows) -> Tensor:
        """Multiply [num_rows, in]; the result is [num_rows, out].

        Both are bfloat16: torch 2.11 returns nothing else.

        Raises:
            ValueError: x is neither bfloat16 nor quantized.
        """
        rows = x if isinstance(x, Fp8Rows) else self._quantize(x)
        return torch._scaled_mm(
            rows.values,
            self._weight,
            scale_a=rows.scales,
            scale_b=self._scales,
            bias=self._bias,
            out_dtype=torch.bfloat16,
            use_fast_accum=True,
        )

    def _quantize(self, x: Tensor) -> Fp8Rows:
        if x.dtype != torch.bfloat16:
            raise ValueError(f"x must be torch.bfloat16, got {x.dtype}: run the model in bfloat16")
        return quantize_fp8(x, backend=self._backend)


def takes_fp8_rows(multiply: object) -> bool:
    """Return whether a product, or a network that begins with one, takes quantized rows."""
    return bool(getattr(multiply, "takes_fp8_rows", False))


def _quantized(weight: Tensor | Fp8Weight) -> Fp8Weight:
    _check_weight(weight)
    return weight if isinstance(weight, Fp8Weight) else quantize_fp8_weight(weight)


def _check_weight(weight: Tensor | Fp8Weight) -> None:
    if weight.dtype not in _DTYPES:
        raise ValueError(
            f"a weight to quantize must be float32, bfloat16 or float16, got {weight.dtype}"
        )
    if any(size % FP8_MULTIPLE for size in weight.shape):
        raise ValueError(
            f"the weight is {list(weight.shape)}, and fp8 products need multiples of "
            f"{FP8_MULTIPLE}: leave it unquantized"
        )
