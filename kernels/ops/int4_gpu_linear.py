"""Matrix products of 4-bit weights in groups and 16-bit activations, on a GPU.

    linear(x) = x W^T + bias,    W = round((q - zero) * scale)

The weight stays packed, at 4.5 bits per number in groups of 32 and 4.1 in groups of 128, and is the
one that unpacking would yield, to the bit. Unlike the products of `int4_linear`, activations are
not quantized.
"""

from __future__ import annotations

import torch
from torch import Tensor

from batchmill.kernels.reference.int4_rows import PackedInt4, multiply_int4_reference, pack_int4

from .dispatch import Backend, LazyTriton, lazy_triton, select_backend
from .grouped_weight import BLOCK, GroupedWeight

#: Change it with anything that changes a product: outputs of another version are not resumed.
INT4_GPU_VERSION = "int4-gpu-1"
_DTYPES = (torch.bfloat16, torch.float16)
#: Largest zero point: GPTQ stores one less than it.
_MOST_ZERO = 16


class Int4GpuLinear:
    """A weight of 4-bit integers. Reads nothing on the host, so a CUDA graph can contain it."""

    def __init__(
        self,
        weight: GroupedWeight,
        bias: Tensor | None,
        *,
        device: torch.device | None = None,
        backend: Backend = "auto",
    ) -> None:
        """Pack a weight, and compile the kernels for it on a GPU.

        Args:
            weight: [out, in] in groups, on any device.
            bias: [out] in the activations' dtype, or None.
            device: Device of the products; None is the weight's.
            backend: The implementation to use; `auto` takes the fastest.

        Raises:
            ValueError: the activations are not of 16 bits, the groups do not divide the inputs, or
                a zero point is not a whole number from 0 to 16.
        """
        _check(weight)
        self._weight = pack_groups(weight, device or weight.device)
        self._bias = bias
        self._dtype = weight.dtype
        self._backend: Backend = backend
        multiply = select_backend("multiply_int4", _BACKENDS, backend, self._weight.packed.device)
        if self._weight.packed.is_cuda and isinstance(multiply, LazyTriton):
            _warm_up(self._one_row(), self._weight, bias)

    def _one_row(self) -> Tensor:
        size = (1, self._weight.num_inputs)
        return torch.zeros(size, dtype=self._dtype, device=self._weight.packed.device)

    @property
    def num_bytes(self) -> int:
        """Bytes of the packed weight."""
        parts = (self._weight.packed, self._weight.scales, self._weight.zeros)
        return sum(part.nbytes for part in parts if part is not None)

    def __call__(self, x: Tensor) -> Tensor:
        """Multiply [num_rows, in]; the result is [num_rows, out] in x's dtype.

        Raises:
            ValueError: x has another shape or dtype.
        """
        num_inputs = self._weight.num_inputs
        if x.dim() != 2 or x.shape[1] != num_inputs or x.dtype != self._dtype:
            raise ValueError(
                f"x must be [num_rows, {num_inputs}] in {self._dtype}, got {list(x.shape)} in "
                f"{x.dtype}"
            )
        x = x if x.stride(1) == 1 else x.contiguous()
        multiply = select_backend("multiply_int4", _BACKENDS, self._backend, x.device)
        return multiply(x, self._weight, self._bias)


def pack_groups(weight: GroupedWeight, device: torch.device) -> PackedInt4:
    """Return a weight as a GPU reads it, on a device."""
    scales, zeros = _by_group(weight.scales), weight.zeros
    return PackedInt4(
        packed=pack_int4(weight.q).to(device),
        scales=scales.to(device, _narrowest(scales, weight.dtype)),
        zeros=None if zeros is None else _by_group(zeros).half().to(device),
        group_size=weight.group_size,
        num_inputs=weight.shape[1],
    )


def _by_group(values: Tensor) -> Tensor:
    """Return [out, num_groups] as [num_groups, out]; one more may fill the last chunk."""
    return torch.nn.functional.pad(values, (0, values.shape[1] % 2)).T.contiguous()


def _narrowest(values: Tensor, preferred: torch.dtype) -> torch.dtype:
    """Return the narrowest float format that holds numbers exactly."""
    for dtype in (preferred, *_DTYPES):
        if torch.equal(values.to(dtype).float(), values):
            return dtype
    return torch.float32


def _check(weight: GroupedWeight) -> None:
    if weight.dtype not in _DTYPES:
        raise ValueError(
            f"int4 products on a GPU take bfloat16 or float16 activations, got {weight.dtype}: set "
            "dtype to 'bfloat16', or leave quantization out"
        )
    size, num_inputs = weight.group_size, weight.shape[1]
    if size % BLOCK or num_inputs % size:
        raise ValueError(
            f"the groups of a weight with {num_inputs} inputs have {size} of them: int4 products "
            "on a GPU need 32, or a multiple of 32, that divides the inputs: leave quantization out"
        )
    zeros = weight.zeros
    if zeros is not None:
        whole = (zeros == zeros.round()) & (zeros >= 0) & (zeros <= _MOST_ZERO)
        if not bool(whole.all()):
            raise ValueError(
                f"a zero point is {zeros[~whole][0].item():g}: int4 products on a GPU need whole "
                f"numbers from 0 to {_MOST_ZERO}: leave quantization out"
            )


_BACKENDS = {
    "reference": multiply_int4_reference,
    "triton": lazy_triton(
        "batchmill.kernels.gpu.int4_linear", "multiply_int4_triton", like=multiply_int4_reference
    ),
}


def _warm_up_nothing(x: Tensor, weight: PackedInt4, bias: Tensor | None) -> None:
    """Compile nothing: plain torch has nothing to compile."""


_warm_up = lazy_triton(
    "batchmill.kernels.gpu.int4_linear", "warm_up_int4_triton", like=_warm_up_nothing
)
