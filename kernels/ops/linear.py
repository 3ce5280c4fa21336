"""Matrix products by weights that are packed once for the machine they run on.

    linear(x) = x W^T + b,    gated_linear(x) = silu(x G^T + g) * (x U^T + u)

Measured on 2 cores with AVX512_BF16, bf16, one to 64 rows: the packed C++ product runs level with
oneDNN's packed one (0.9 to 1.6 times as fast) and 1.2 to 2.3 times as fast as plain `F.linear`.
"""

from __future__ import annotations

import ctypes
import logging
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from batchmill.kernels.cpu.library import cpp_is_usable, default_library

from .dispatch import Backend
from .packed_weight import PackedWeight

_log = logging.getLogger(__name__)

#: [num_rows, in] -> [num_rows, out], in the weight's dtype. An fp8 weight takes `Fp8Rows` as well.
Linear = Callable[[Any], Tensor]

_DTYPES = {torch.float32: 0, torch.bfloat16: 1}
#: Rows for which oneDNN packs a weight; measured: one layout serves 1 to 512 rows equally.
_ONEDNN_ROWS_HINT = 64


def make_linear(weight: Tensor, bias: Tensor | None = None, *, backend: Backend = "auto") -> Linear:
    """Return a callable that multiplies by a weight in the fastest way of this machine.

    If the weight is packed, the callable does not keep the weight itself: once the caller drops it,
    memory holds one copy.

    Args:
        weight: [out, in].
        bias: [out], or None.
        backend: `reference` is `F.linear`, and so is `triton` (cuBLAS on a GPU; we have no Triton
            kernel for it). `cpp` demands the C++ kernels. `auto` takes them on a CPU that
            multiplies the dtype, else oneDNN's packed weights, else `F.linear`.

    Raises:
        ValueError: `cpp` cannot multiply this weight, or the backend is another one.
        CppBuildError: `cpp` was demanded and cannot be built.
    """
    if backend not in ("auto", "cpp", "reference", "triton"):
        raise ValueError(
            f"linear has no {backend!r} backend; it has 'cpp', 'reference', 'triton': name one of "
            "these, or 'auto'"
        )
    on_cpu = weight.device.type == "cpu"
    if backend == "cpp" or (backend == "auto" and on_cpu and cpp_is_usable()):
        if is_packable(weight):
            return PackedLinear([weight], [bias])
        if backend == "cpp":
            raise ValueError(
                f"the C++ kernels do not multiply {weight.dtype} weights {list(weight.shape)} on "
                f"{weight.device.type} here: they take float32, and bfloat16 with an even inner "
                "size on a CPU with AVX512_BF16; use backend='auto'"
            )
    if backend == "auto" and on_cpu and weight.dtype == torch.bfloat16 and _onednn_packs():
        return _onednn_linear(weight, bias)
    return dense_linear(weight, bias)


def dense_linear(weight: Tensor, bias: Tensor | None) -> Linear:
    """Return the reference of `make_linear`: `F.linear` with the weight as it is."""

    def apply(x: Tensor) -> Tensor:
        return F.linear(x, weight, bias)

    return apply


def is_packable(weight: Tensor, library: ctypes.CDLL | None = None) -> bool:
    """Return whether the C++ kernels multiply weights of this dtype and shape on this CPU.

    Raises:
        CppBuildError: the C++ kernels cannot be built or loaded.
    """
    dtype = _DTYPES.get(weight.dtype)
    if dtype is None or weight.device.type != "cpu":
        return False
    library = library or default_library()
    return bool(library.bm_linear_packed_lanes(weight.shape[0], weight.shape[1], dtype))


class PackedLinear(PackedWeight[Tensor]):
    """A weight multiplied in its own dtype; raises ValueError if `is_packable` is False."""

    @property
    def cpp_format(self) -> tuple[int, int, int]:
        """See `PackedWeight`."""
        return 0, 0, 0

    def _check(self, part: Tensor) -> None:
        if not is_packable(part, self._library):
            raise ValueError(f"{part.dtype} {list(part.shape)} cannot be packed: see is_packable")

    def _pack(self, weight: Tensor) -> Tensor:
        weight = weight.contiguous()
        size, dtype = tuple(weight.shape), _DTYPES[weight.dtype]
        packed = torch.empty(self._library.bm_linear_packed_lanes(*size, dtype), dtype=torch.int32)
        self._library.bm_linear_pack(
            weight.data_ptr(), packed.data_ptr(), *size, dtype, torch.get_num_threads()
        )
        return packed

    def _multiply(self, x: Tensor, out: Tensor) -> None:
        self._library.bm_linear(
            out.data_ptr(), x.data_ptr(), self.packed.data_ptr(), self._bias_address,
            len(x), self.out_features, self.in_features, self.in_features, self.out_features,
            self._gated, out.dtype == torch.float32, _DTYPES[x.dtype], torch.get_num_threads(),
        )  # fmt: skip


def _onednn_linear(weight: Tensor, bias: Tensor | None) -> Linear:
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _ONEDNN_ROWS_HINT)
    multiply = torch.ops.mkldnn._linear_pointwise
    return lambda x: multiply(x, packed, bias, "none", [], "")


@lru_cache(maxsize=1)
def _onednn_packs() -> bool:
    """Return whether torch's private oneDNN operators still work; tried once."""
    try:
        weight, x = torch.eye(16, dtype=torch.bfloat16), torch.ones(1, 16, dtype=torch.bfloat16)
        if torch.equal(_onednn_linear(weight, None)(x), x):
            return True
        reason = "a product is wrong"
    except (AttributeError, RuntimeError, TypeError) as error:
        reason = str(error)
    _log.warning(
        "oneDNN cannot pack bfloat16 weights with torch %s (%s): plain products run instead, about "
        "half as fast at small batches",
        torch.__version__,
        reason,
    )
    return False
