"""What a device's memory holds, and whether weights fit into it before they are read."""

from __future__ import annotations

from typing import Protocol

import torch

from batchmill.engine.errors import ConfigError

from .host_memory import available_memory_bytes

_GIB = 1024**3


class MemoryProbe(Protocol):
    """What a device tells about its memory."""

    def total_bytes(self) -> int:
        """All that the device has."""

    def free_bytes(self) -> int:
        """What no process holds now."""

    def process_bytes(self) -> int:
        """What this process's tensors hold now."""

    def reset_peak(self) -> None:
        """Start to watch for the peak."""

    def peak_growth_bytes(self) -> int:
        """Most that this process held since `reset_peak` beyond what it held then."""


class CudaMemory:
    """A CUDA GPU's memory, as its driver and torch's allocator count it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._held_bytes = 0

    def total_bytes(self) -> int:
        """See `MemoryProbe`."""
        return torch.cuda.mem_get_info(self._device)[1]

    def free_bytes(self) -> int:
        """See `MemoryProbe`; torch's cache of freed memory counts as free."""
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
        """See `MemoryProbe`; what the allocator reserved, its fragmentation included."""
        torch.cuda.synchronize(self._device)
        return torch.cuda.max_memory_reserved(self._device) - self._held_bytes


def make_current(device: torch.device) -> None:
    """Let this thread's streams, events, graphs and Triton launches be on a GPU.

    One without an index is the current one already.
    """
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)


def check_weights_fit(
    weight_bytes: int,
    dtype: torch.dtype,
    device: torch.device,
    free_bytes: int,
    fp8_bytes: int | None = None,
) -> None:
    """Refuse weights that a device has no room for, before hours of downloads or a kill.

    Args:
        weight_bytes: What they will take.
        dtype: Their number format.
        device: Where they shall lie.
        free_bytes: What is free there.
        fp8_bytes: What the device needs to make them fp8; None where that is no remedy.

    Raises:
        ConfigError: they are larger.
    """
    if weight_bytes <= free_bytes:
        return
    smaller = f"dtype 'bfloat16' ({gib(weight_bytes / 2)} GiB), " if dtype == torch.float32 else ""
    if fp8_bytes is not None and fp8_bytes <= free_bytes:
        smaller += f"quantization 'fp8' ({gib(fp8_bytes)} GiB, where the GPU has it), "
    where = "this host, or its container," if device.type == "cpu" else str(device)
    raise ConfigError(
        f"the weights take {gib(weight_bytes)} GiB and {where} has {gib(free_bytes)} GiB free: "
        f"free {gib(weight_bytes - free_bytes)} GiB, use {smaller}a smaller model, or a device "
        "with more memory"
    )


def free_memory_bytes(device: torch.device) -> int:
    """What a device has free now, its container's limit taken into account on a CPU."""
    if device.type == "cuda":
        return CudaMemory(device).free_bytes()
    return available_memory_bytes()


def gib(num_bytes: float) -> str:
    """A number of bytes in GiB, for a message."""
    return f"{num_bytes / _GIB:.2f}"
