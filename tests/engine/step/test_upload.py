"""Packed uploads: arrays keep their values, however late the copy to the device happens."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from batchmill.engine.step import upload
from batchmill.engine.step.upload import ALIGNMENT, Uploader, pack, packed_size, unpack

ARRAYS = (
    np.arange(5, dtype=np.int64),
    np.zeros(0, dtype=np.int64),
    np.array([[1, 2, 3], [4, 5, 6]], dtype=np.int32),
    np.array([0.5, -2.5, 3.0], dtype=np.float32),
    np.array([True, False, True]),
    np.arange(12, dtype=np.int64).reshape(3, 4)[:, 1:3],  # not contiguous
)


def test_packed_arrays_keep_their_values_shapes_and_dtypes() -> None:
    buffer = torch.full((packed_size(ARRAYS),), 255, dtype=torch.uint8)
    tensors = unpack(pack(ARRAYS, buffer), ARRAYS)
    for array, tensor in zip(ARRAYS, tensors, strict=True):
        expected = torch.from_numpy(np.ascontiguousarray(array))
        assert tensor.dtype == expected.dtype
        assert torch.equal(tensor, expected)
        assert tensor.storage_offset() * tensor.element_size() % ALIGNMENT == 0


def test_tensors_on_a_cpu_share_the_arrays_memory() -> None:
    array = np.zeros(3, dtype=np.int64)
    (tensor,) = Uploader("cpu").upload(array)
    array[1] = 7
    assert tensor.tolist() == [0, 7, 0]


def test_host_far_ahead_of_its_gpu_overwrites_no_upload(monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies from pinned memory happen when the device reaches them: here, after all uploads."""
    copies: list[Callable[[], Tensor]] = []

    def begin_copy(memory: Tensor, device: torch.device) -> Tensor:
        target = torch.zeros_like(memory)
        copies.append(lambda: target.copy_(memory))
        return target

    monkeypatch.setattr(upload, "begin_copy", begin_copy)
    monkeypatch.setattr(upload, "pinned", lambda size: torch.empty(size, dtype=torch.uint8))
    uploader = Uploader("cuda")
    uploaded: list[Tensor] = []
    for number in range(12):
        array = np.full(5, number)
        uploaded += uploader.upload(array)
        array.fill(-1)
    for copy in copies:
        copy()
    assert [tensor.tolist() for tensor in uploaded] == [[number] * 5 for number in range(12)]
