"""Host arrays to tensors on the model's device, in one copy that nobody waits for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

#: Every array starts at a multiple of it, as the widest of them needs.
ALIGNMENT = 16


class Uploader:
    """Copies a step's arrays to the device.

    On a CPU the tensors share the arrays' memory. For any other device they are packed into pinned
    memory and copied at once: a copy from pageable memory waits for the device to get there, and
    each of several costs its launch.

    Every upload has pinned memory of its own. However many steps the host is ahead, none writes to
    memory whose copy is still to be made: torch's allocator gives it out again only afterwards.
    """

    def __init__(self, device: torch.device | str) -> None:
        self._device = torch.device(device)

    def upload(self, *arrays: NDArray[np.generic]) -> Sequence[Tensor]:
        """Tensors of the same shapes and dtypes on the device, in the same order."""
        if self._device.type == "cpu":
            return [torch.from_numpy(array) for array in arrays]
        packed = pack(arrays, pinned(packed_size(arrays)))
        return unpack(begin_copy(packed, self._device), arrays)


def pinned(num_bytes: int) -> Tensor:
    """Bytes on the host that a GPU copies by itself."""
    return torch.empty(num_bytes, dtype=torch.uint8, pin_memory=True)


def begin_copy(memory: Tensor, device: torch.device) -> Tensor:
    """Pinned bytes on the device, once its stream got there."""
    return memory.to(device, non_blocking=True)


def packed_size(arrays: Sequence[NDArray[np.generic]]) -> int:
    """Bytes that some arrays take one after another."""
    return sum(_aligned(array.nbytes) for array in arrays)


def pack(arrays: Sequence[NDArray[np.generic]], buffer: Tensor) -> Tensor:
    """Write arrays one after another into a buffer of `packed_size` bytes; returns it."""
    target, start = buffer.numpy(), 0
    for array in arrays:
        raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        target[start : start + array.nbytes] = raw
        start += _aligned(array.nbytes)
    return buffer


def unpack(packed: Tensor, arrays: Sequence[NDArray[np.generic]]) -> list[Tensor]:
    """Views of a packed tensor, with the shapes and dtypes of the arrays that were packed."""
    tensors, start = [], 0
    for array in arrays:
        dtype = torch.from_numpy(np.empty(0, dtype=array.dtype)).dtype
        tensors.append(packed[start : start + array.nbytes].view(dtype).view(array.shape))
        start += _aligned(array.nbytes)
    return tensors


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT
