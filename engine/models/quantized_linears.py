"""How each quantization multiplies: which matrices are 8-bit, which 4-bit, and which stay dense."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from batchmill.kernels.ops.decoder_layers import CppLinear
from batchmill.kernels.ops.dispatch import Backend
from batchmill.kernels.ops.fp8_linear import make_fp8_linear
from batchmill.kernels.ops.fp8_weight import Fp8Weight
from batchmill.kernels.ops.grouped_weight import GroupedWeight
from batchmill.kernels.ops.int4_gpu_linear import Int4GpuLinear
from batchmill.kernels.ops.int4_linear import Int4Linear, make_int4_linear
from batchmill.kernels.ops.int8_linear import Int8Linear, make_int8_linear
from batchmill.kernels.ops.linear import Linear, PackedLinear, make_linear

from .feed_forward import LinearFactory
from .weights import Matrix, allocated

#: Packs one matrix, or gate and up, with their biases.
PackedFactory = Callable[[Sequence[Any], Sequence[Tensor | None]], CppLinear]


def layer_linear(
    quantization: str | None,
    backend: Backend,
    device: torch.device,
    *,
    has_stored_groups: bool,
    has_fp8: bool = False,
) -> LinearFactory:
    """Return what makes the products of a decoder's layers.

    Args:
        quantization: A setting of `QUANTIZATIONS`, or None.
        backend: Of our kernels.
        device: Of the products.
        has_stored_groups: Matrices that are stored in 4 bits are kept so. Then "int4" quantizes
            others to 8 bits only, because the checkpoint's makers left them out; on a GPU it keeps
            others in their dtype.
        has_fp8: Matrices are in fp8 already; "fp8" keeps others in their dtype.
    """
    if quantization == "fp8" and has_fp8:
        return partial(_stored_fp8, backend=backend)
    if quantization == "int4" and _is_on_gpu(backend, device):
        return partial(_stored_on_gpu, backend=backend, device=device)
    if quantization == "int4" and has_stored_groups:
        return partial(_stored_linear, backend=backend)
    factories: dict[str | None, Callable[..., Linear]] = {
        None: make_linear,
        "int8": make_int8_linear,
        "int4": make_int4_linear,
        "fp8": make_fp8_linear,
    }
    return partial(factories[quantization], backend=backend)


def head_linear(quantization: str | None, backend: Backend, device: torch.device) -> LinearFactory:
    """Return what makes the product of the output head, in which rounding shows most.

    "int4" quantizes a dense head to 8 bits on a CPU. On a GPU it keeps it, as "fp8" does: a decode
    step reads it once.
    """
    if quantization == "int4":
        return layer_linear(quantization, backend, device, has_stored_groups=True)
    quantization = None if quantization == "fp8" else quantization
    return layer_linear(quantization, backend, device, has_stored_groups=False)


def packed_linear(quantization: str | None, *, has_stored_groups: bool) -> PackedFactory:
    """Return what packs the matrices of the C++ layers; see `layer_linear`."""
    if quantization == "int4":
        return _pack_stored if has_stored_groups else Int4Linear
    return Int8Linear if quantization == "int8" else PackedLinear


def _is_on_gpu(backend: Backend, device: torch.device) -> bool:
    """Return whether a GPU multiplies; tests interpret Triton's kernels on a CPU."""
    return device.type != "cpu" or backend == "triton"


def _stored_on_gpu(
    weight: Matrix, bias: Tensor | None, *, backend: Backend, device: torch.device
) -> Linear:
    if isinstance(weight, GroupedWeight):
        return Int4GpuLinear(weight, bias, device=device, backend=backend)
    return make_linear(allocated(weight), bias, backend=backend)


def _stored_fp8(weight: Matrix, bias: Tensor | None, *, backend: Backend) -> Linear:
    if isinstance(weight, Fp8Weight):
        return make_fp8_linear(weight, bias, backend=backend)
    return make_linear(allocated(weight), bias, backend=backend)


def _stored_linear(weight: Matrix, bias: Tensor | None, *, backend: Backend) -> Linear:
    if isinstance(weight, GroupedWeight):
        return make_int4_linear(weight, bias, backend=backend)
    return make_int8_linear(allocated(weight), bias, backend=backend)


def _pack_stored(parts: Sequence[Matrix], biases: Sequence[Tensor | None]) -> CppLinear:
    grouped = [part for part in parts if isinstance(part, GroupedWeight)]
    if len(grouped) == len(parts):
        return Int4Linear(grouped, biases)
    return Int8Linear([part for part in parts if isinstance(part, Tensor)], biases)
