"""Measures a device's memory, and refuses weights that do not fit before they are read."""

from __future__ import annotations

from typing import Protocol

import torch

from batchmill.engine.cpu_kernels import auto_dtype
from batchmill.engine.errors import ConfigError
from batchmill.engine.gpus import point_triton_to_libcuda

from .host_memory import available_memory_bytes

_GIB = 1024**3


class MemoryProbe(Protocol):
    """Figures of a device's memory."""

    def total_bytes(self) -> int:
        """Return the device's whole memory."""

    def free_bytes(self) -> int:
        """Return the memory that no process holds now."""

    def process_bytes(self) -> int:
        """Return the memory that this process's tensors hold now."""

    def reset_peak(self) -> None:
        """Start a new measurement of the peak."""

    def peak_growth_bytes(self) -> int:
        """Return by how much this process's memory has grown since `reset_peak`, at its peak."""


class CudaMemory:
    """A CUDA GPU's memory, as its driver and torch's allocator count it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._held_bytes = 0

    def total_bytes(self) -> int:
        """See `MemoryProbe`."""
        return torch.cuda.mem_get_info(self._device)[1]

    def free_bytes(self) -> int:
        """See `MemoryProbe`; freed memory that torch caches counts as free."""
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(self._device)[0]

    def process_bytes(self) -> int:
        """See `MemoryProbe`."""
        return torch.cuda.memory_allocated(self._device)

    def reset_peak(self) -> None:
        """See `MemoryProbe`."""
        torch.cuda.synchronize(self._device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self._device)
        self._held_bytes = torch.cuda.memory_reserved(self._device)

    def peak_growth_bytes(self) -> int:
        """See `MemoryProbe`; counts what the allocator reserved, including fragmentation."""
        torch.cuda.synchronize(self._device)
        return torch.cuda.max_memory_reserved(self._device) - self._held_bytes


def make_current(device: torch.device) -> None:
    """Make a GPU the current one for this thread's streams, events, graphs and Triton launches.

    A device without an index is the current one already.
    """
    if device.type != "cuda":
        return
    if device.index is not None:
        torch.cuda.set_device(device)
    point_triton_to_libcuda()


def check_weights_fit(
    weight_bytes: int,
    dtype: torch.dtype,
    device: torch.device,
    free_bytes: int,
    fp8_bytes: int | None = None,
) -> None:
    """Refuse weights that do not fit on a device, before the time to read them is spent.

    Args:
        weight_bytes: Size of the weights.
        dtype: Their number format.
        device: Their device.
        free_bytes: Memory that is free there.
        fp8_bytes: Memory that the device needs to load them as fp8; None if it cannot.

    Raises:
        ConfigError: they do not fit; the message lists the remedies that would work.
    """
    if weight_bytes <= free_bytes:
        return
    smaller = ""
    if dtype == torch.float32 and weight_bytes / 2 <= free_bytes:
        smaller = f"dtype 'bfloat16' ({gib(weight_bytes / 2)} GiB{_why_float32(device)}), "
    if fp8_bytes is not None and fp8_bytes <= free_bytes:
        smaller += f"quantization 'fp8' ({gib(fp8_bytes)} GiB, if the GPU supports it), "
    place = "this host (or its container)" if device.type == "cpu" else str(device)
    raise ConfigError(
        f"the weights need {gib(weight_bytes)} GiB in {dtype_name(dtype)}, but "
        f"{place} has only {gib(free_bytes)} GiB "
        f"free: free another {gib(weight_bytes - free_bytes)} GiB, or use {smaller}a smaller model "
        "or a device with more memory"
    )


def _why_float32(device: torch.device) -> str:
    """Return why a user who set no dtype has float32, for a message."""
    if auto_dtype(on_cpu=device.type == "cpu") != "float32":
        return ""
    return "; 'auto' is float32 on this CPU, which computes bfloat16 more slowly"


def free_memory_bytes(device: torch.device) -> int:
    """Return the memory that is free on a device; on a CPU, within its container's limit."""
    if device.type == "cuda":
        return CudaMemory(device).free_bytes()
    return available_memory_bytes()


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a number format as configurations have it, such as "bfloat16"."""
    return str(dtype).removeprefix("torch.")


def gib(num_bytes: float) -> str:
    """Format a number of bytes in GiB, for a message."""
    return f"{num_bytes / _GIB:.2f}"
