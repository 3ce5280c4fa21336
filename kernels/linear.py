"""Matrix products on weights that are laid out once for the machine they run on.

    linear(x) = x W^T + b,    gated_linear(x) = silu(x G^T + g) * (x U^T + u)

Measured on 2 cores with AVX512_BF16, bf16, one to 64 rows: the packed C++ product runs level with
oneDNN's packed one (0.9 to 1.6 times as fast) and 1.2 to 2.3 times as fast as plain `F.linear`.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from .cpp_library import cpp_is_usable, default_library
from .dispatch import Backend

_log = logging.getLogger(__name__)

#: [num_rows, in] -> [num_rows, out], in the weight's dtype.
Linear = Callable[[Tensor], Tensor]

_DTYPES = {torch.float32: 0, torch.bfloat16: 1}
#: Rows that oneDNN lays a weight out for; measured: one layout serves 1 to 512 rows equally.
_ONEDNN_ROWS_HINT = 64


def make_linear(weight: Tensor, bias: Tensor | None = None, *, backend: Backend = "auto") -> Linear:
    """A callable that multiplies by a weight, laid out the fastest way this machine has.

    The weight itself is not kept where it is packed: let go of it, and memory holds one copy.

    Args:
        weight: [out, in].
        bias: [out], or None.
        backend: `reference` is `F.linear`; `cpp` insists on the C++ kernels; `auto` takes those on
            a CPU that multiplies the dtype, else oneDNN's packed weights, else `F.linear`.

    Raises:
        ValueError: `cpp` was asked for and cannot multiply this weight.
        CppBuildError: `cpp` was asked for and cannot be built.
    """
    on_cpu = weight.device.type == "cpu"
    if backend == "cpp" or (backend == "auto" and on_cpu and cpp_is_usable()):
        if is_packable(weight):
            return PackedLinear([weight], [bias])
        if backend == "cpp":
            raise ValueError(
                f"the C++ kernels do not multiply {weight.dtype} weights {list(weight.shape)} on "
                "this CPU: bfloat16 needs AVX512_BF16 and an even inner size; use backend='auto'"
            )
    if backend == "auto" and on_cpu and weight.dtype == torch.bfloat16 and _onednn_packs():
        return _onednn_linear(weight, bias)
    return dense_linear(weight, bias)


def dense_linear(weight: Tensor, bias: Tensor | None) -> Linear:
    """The plain truth of `make_linear`: `torch.nn.functional.linear` on the weight as it is."""

    def apply(x: Tensor) -> Tensor:
        return F.linear(x, weight, bias)

    return apply


def is_packable(weight: Tensor, library: ctypes.CDLL | None = None) -> bool:
    """Whether the C++ kernels multiply weights of this dtype and shape on this CPU.

    Raises:
        CppBuildError: there are no C++ kernels.
    """
    dtype = _DTYPES.get(weight.dtype)
    if dtype is None or weight.device.type != "cpu":
        return False
    library = library or default_library()
    return bool(library.bm_linear_packed_lanes(weight.shape[0], weight.shape[1], dtype))


class PackedLinear:
    """Owns a weight in the C++ kernels' layout: panels of columns, each one stream along k.

    With two parts, gate and up, the product is gated: silu(x G^T + g) * (x U^T + u).

    Attributes:
        out_features: Columns of the result.
        in_features: Columns of its argument.
        packed: The weight, an opaque tensor of 4-byte lanes.
        bias: A float32 for every packed column, or None.
    """

    def __init__(
        self,
        parts: Sequence[Tensor],
        biases: Sequence[Tensor | None],
        library: ctypes.CDLL | None = None,
    ) -> None:
        """Pack one weight, or gate and up.

        Args:
            parts: Weights [out, in] of one shape, one or two.
            biases: As many biases [out], or None.
            library: The kernels to use; None takes those for this CPU.

        Raises:
            ValueError: the parts differ, or `is_packable` says no.
        """
        check_parts(parts)
        self._library = library or default_library()
        if not all(is_packable(part, self._library) for part in parts):
            first = parts[0]
            raise ValueError(f"{first.dtype} {list(first.shape)} cannot be packed: see is_packable")
        self.out_features, self.in_features = parts[0].shape
        self._dtype = parts[0].dtype
        self._gated = len(parts) == 2
        self.packed = torch.cat([self._pack(part.contiguous()) for part in parts])
        self.bias = packed_biases(biases, self.out_features, self._library.bm_linear_panel())

    def _pack(self, weight: Tensor) -> Tensor:
        size, dtype = (self.out_features, self.in_features), _DTYPES[weight.dtype]
        packed = torch.empty(self._library.bm_linear_packed_lanes(*size, dtype), dtype=torch.int32)
        self._library.bm_linear_pack(
            weight.data_ptr(), packed.data_ptr(), *size, dtype, torch.get_num_threads()
        )
        return packed

    def __call__(self, x: Tensor, *, out: Tensor | None = None) -> Tensor:
        """Multiply.

        Args:
            x: [num_rows, in_features], contiguous, in the weight's dtype.
            out: Where the result goes, [num_rows, out_features] contiguous, in the weight's dtype
                or in float32; None makes a tensor in the weight's dtype.

        Returns:
            [num_rows, out_features].

        Raises:
            ValueError: x or out is not that.
        """
        check_argument(x, self.in_features, self._dtype)
        out = result_tensor(out, x, self.out_features)
        self._library.bm_linear(
            out.data_ptr(), x.data_ptr(), self.packed.data_ptr(),
            None if self.bias is None else self.bias.data_ptr(),
            len(x), self.out_features, self.in_features, self.in_features, self.out_features,
            self._gated, out.dtype == torch.float32, _DTYPES[x.dtype], torch.get_num_threads(),
        )  # fmt: skip
        return out


def check_parts(parts: Sequence[Tensor]) -> None:
    """Weights that are packed together: one, or two of one shape.

    Raises:
        ValueError: they are not that.
    """
    if len(parts) > 2 or any(part.shape != parts[0].shape for part in parts):
        shapes = [list(part.shape) for part in parts]
        raise ValueError(f"a linear has one weight, or two of one shape; got {shapes}")


def packed_biases(biases: Sequence[Tensor | None], out_features: int, panel: int) -> Tensor | None:
    """A float32 for every packed column of every part; None where no part has a bias."""
    if all(bias is None for bias in biases):
        return None
    packed = torch.zeros(len(biases), -(-out_features // panel) * panel)
    for row, bias in zip(packed, biases, strict=True):
        if bias is not None:
            row[:out_features] = bias
    return packed


def check_argument(x: Tensor, in_features: int, dtype: torch.dtype) -> None:
    """What C code may read as rows of activations.

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
            f"x must be {dtype} on the CPU, got {x.dtype} on {x.device}: the weight was packed for "
            "that"
        )


def result_tensor(out: Tensor | None, x: Tensor, out_features: int) -> Tensor:
    """The given tensor for a result, or a new one in x's dtype.

    Raises:
        ValueError: the given one is not [num_rows, out_features], contiguous, in x's dtype or in
            float32.
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


def _onednn_linear(weight: Tensor, bias: Tensor | None) -> Linear:
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _ONEDNN_ROWS_HINT)
    multiply = torch.ops.mkldnn._linear_pointwise
    return lambda x: multiply(x, packed, bias, "none", [], "")


@lru_cache(maxsize=1)
def _onednn_packs() -> bool:
    """Whether torch's oneDNN operators, which are private, work as they did; tried once."""
    try:
        weight, x = torch.eye(16, dtype=torch.bfloat16), torch.ones(1, 16, dtype=torch.bfloat16)
        if torch.equal(_onednn_linear(weight, None)(x), x):
            return True
        reason = "a product came out wrong"
    except (AttributeError, RuntimeError, TypeError) as error:
        reason = str(error)
    _log.warning(
        "oneDNN cannot pack bfloat16 weights with torch %s (%s): plain products run instead, about "
        "half as fast at small batches",
        torch.__version__,
        reason,
    )
    return False
