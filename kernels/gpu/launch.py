"""Properties of the device that the Triton launchers need, and checks of tensors."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from triton.runtime.interpreter import InterpretedFunction

#: Multiprocessors of the interpreter: few and odd, so that tests divide work unevenly.
_INTERPRETED_MULTIPROCESSORS = 3
#: First compute capability with conversions to and from float8_e4m3fn.
_FP8_CAPABILITY = (8, 9)


def interpreted(kernel: Any) -> bool:
    """Return whether Triton interprets a kernel (`TRITON_INTERPRET=1` when it was imported)."""
    return isinstance(kernel, InterpretedFunction)


def check_device(op: str, kernel: Any, tensor: Tensor) -> None:
    """Refuse tensors that the kernel cannot read, before Triton fails with an obscure message.

    Raises:
        ValueError: the tensor is not on a GPU, and the kernel is not interpreted.
    """
    # "meta" tensors have no data: tests record launches on them (tests/kernels/gpu/launches.py).
    if tensor.device.type not in ("cuda", "meta") and not interpreted(kernel):
        raise ValueError(
            f"the triton backend of {op} needs tensors on a GPU, got {tensor.device}: "
            "use backend='auto' or 'reference' for them"
        )


def check_fp8(cache: Tensor) -> None:
    """Refuse a float8 cache on a GPU that cannot convert it.

    Raises:
        ValueError: the cache is float8_e4m3fn and the GPU's compute capability is below 8.9.
    """
    if cache.dtype != torch.float8_e4m3fn or cache.device.type != "cuda":
        return
    capability = torch.cuda.get_device_capability(cache.device)
    if capability < _FP8_CAPABILITY:
        raise ValueError(
            f"a float8_e4m3fn cache needs compute capability {_FP8_CAPABILITY} or later, this GPU "
            f"has {capability}: keep the cache in the model's dtype"
        )


@lru_cache
def architecture(device: torch.device) -> int:
    """Return a GPU's compute capability as one number (90 is 9.0); 90 for other devices."""
    if device.type != "cuda":
        return 90
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


@lru_cache
def num_multiprocessors(device: torch.device) -> int:
    """Return a GPU's number of multiprocessors; a small one for the interpreter's CPU tensors."""
    if device.type != "cuda":
        return _INTERPRETED_MULTIPROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count


def dot_precision(dtype: torch.dtype) -> str:
    """Return the precision of `tl.dot`: float32 takes three TF32 steps, about 2**-21 relative."""
    return "tf32x3" if dtype == torch.float32 else "tf32"
