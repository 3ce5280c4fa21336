"""Uploads of host arrays to the model's device, packed into one asynchronous copy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

#: Every array starts at a multiple of this many bytes, as the widest dtype needs.
ALIGNMENT = 16


class Uploader:
    """Copies a step's arrays to the device.

    On a CPU the tensors share the arrays' memory. For any other device they are packed into pinned
    memory and copied at once: a copy from pageable memory waits until the device reaches it, and
    each separate copy costs a launch.

    Every upload allocates its own pinned memory. However many steps the host is ahead, none
    overwrites memory whose copy is pending: torch's allocator reuses it only after the copy.
    """

    def __init__(self, device: torch.device | str) -> None:
        self._device = torch.device(device)

    def upload(self, *arrays: NDArray[np.generic]) -> Sequence[Tensor]:
        """Return tensors of the same shapes and dtypes on the device, in the same order."""
        if self._device.type == "cpu":
            return [torch.from_numpy(array) for array in arrays]
        packed = pack(arrays, pinned(packed_size(arrays)))
        return unpack(begin_copy(packed, self._device), arrays)


def pinned(num_bytes: int) -> Tensor:
    """Allocate page-locked bytes on the host, which a GPU copies asynchronously."""
    return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)


def begin_copy(memory: Tensor, device: torch.device) -> Tensor:
    """Queue a copy of pinned bytes to the device; return the tensor that it fills."""
    return memory.to(device, non_blocking=True)


def packed_size(arrays: Sequence[NDArray[np.generic]]) -> int:
    """Return the bytes that some arrays take one after another, with alignment."""
    return sum(_aligned(array.nbytes) for array in arrays)


def pack(arrays: Sequence[NDArray[np.generic]], buffer: Tensor) -> Tensor:
    """Write arrays one after another into a buffer of `packed_size` bytes; return the buffer."""
    target, start = buffer.numpy(), 0
    for array in arrays:
        raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        target[start : start + array.nbytes] = raw
        start += _aligned(array.nbytes)
    return buffer


def unpack(packed: Tensor, arrays: Sequence[NDArray[np.generic]]) -> list[Tensor]:
    """Return views of a packed tensor, with the shapes and dtypes of the packed arrays."""
    tensors, start = [], 0
    for array in arrays:
        dtype = torch.from_numpy(np.empty(0, dtype=array.dtype)).dtype
        tensors.append(packed[start : start + array.nbytes].view(dtype).view(array.shape))
        start += _aligned(array.nbytes)
    return tensors


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT
