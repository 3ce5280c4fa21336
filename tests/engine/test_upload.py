"""Arrays packed into one buffer come out as they went in."""

from __future__ import annotations

import numpy as np
import torch

from batchmill.engine.upload import ALIGNMENT, Uploader, pack, packed_size, unpack

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


def test_on_a_cpu_tensors_are_the_arrays_themselves() -> None:
    array = np.zeros(3, dtype=np.int64)
    (tensor,) = Uploader("cpu").upload(array)
    array[1] = 7
    assert tensor.tolist() == [0, 7, 0]
