"""Host arrays to tensors on the model's device, in one copy that nobody waits for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

#: A buffer is written again two uploads later: the engine has collected that step by then.
NUM_BUFFERS = 3
#: Every array starts at a multiple of it, as the widest of them needs.
ALIGNMENT = 16


class Uploader:
    """Copies a step's arrays to the device.

    On a CPU the tensors share the arrays' memory. For any other device they are packed into pinned
    memory and copied at once: a copy from pageable memory waits, and each of several costs its
    launch. The pinned buffers take turns, so that none is written while its copy may be under way.
    """

    def __init__(self, device: torch.device | str) -> None:
        self._device = torch.device(device)
        self._buffers: list[Tensor] = [torch.empty(0, dtype=torch.uint8)] * NUM_BUFFERS
        self._turn = 0

    def upload(self, *arrays: NDArray[np.generic]) -> Sequence[Tensor]:
        """Tensors of the same shapes and dtypes on the device, in the same order."""
        if self._device.type == "cpu":
            return [torch.from_numpy(array) for array in arrays]
        packed = pack(arrays, self._buffer(packed_size(arrays)))
        return unpack(packed.to(self._device, non_blocking=True), arrays)

    def _buffer(self, num_bytes: int) -> Tensor:
        self._turn = (self._turn + 1) % NUM_BUFFERS
        if len(self._buffers[self._turn]) < num_bytes:
            self._buffers[self._turn] = torch.empty(2 * num_bytes, dtype=torch.uint8).pin_memory()
        return self._buffers[self._turn][:num_bytes]


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
