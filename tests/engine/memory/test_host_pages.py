"""Memory that is mapped first and provided later."""

from __future__ import annotations

import ctypes
import mmap
from itertools import count

import pytest
import torch
from torch import Tensor

from batchmill.engine.memory import host_pages
from batchmill.engine.memory.host_pages import PageProvider, map_zeros

CHUNK = host_pages._CHUNK_BYTES


def num_resident_bytes(tensor: Tensor) -> int:
    """How much of a tensor is in memory."""
    num_pages = -(-tensor.nbytes // mmap.PAGESIZE)
    there = (ctypes.c_ubyte * num_pages)()
    libc = ctypes.CDLL(None, use_errno=True)
    answer = libc.mincore(ctypes.c_void_p(tensor.data_ptr()), ctypes.c_size_t(tensor.nbytes), there)
    assert answer == 0, ctypes.get_errno()
    return sum(page & 1 for page in there) * mmap.PAGESIZE


def small_pages(num_bytes: int) -> Tensor:
    """Zeros of which the system gives no more than is asked for."""
    pages = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    pages.madvise(mmap.MADV_NOHUGEPAGE)
    return torch.frombuffer(pages, dtype=torch.uint8)


def test_nothing_is_there_before_it_is_provided_and_all_of_it_after() -> None:
    tensors = [small_pages(3 * CHUNK + 4096), small_pages(CHUNK // 2)]
    assert [num_resident_bytes(tensor) for tensor in tensors] == [0, 0]
    pages = PageProvider(tensors)
    pages.provide(60.0)
    assert pages.is_done
    assert [num_resident_bytes(tensor) for tensor in tensors] == [t.nbytes for t in tensors]


@pytest.mark.parametrize("num_threads", [1, 3])
def test_what_is_written_stays(num_threads: int) -> None:
    tensors = [small_pages(CHUNK) for _ in range(5)]
    for number, tensor in enumerate(tensors):
        tensor[number * 5000 :].fill_(number)
    copies = [tensor.clone() for tensor in tensors]
    PageProvider(tensors).provide(60.0, num_threads=num_threads)
    assert all(map(torch.equal, tensors, copies))


def test_out_of_time_the_first_blocks_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = [small_pages(2 * CHUNK) for _ in range(3)]
    ticks = count()
    monkeypatch.setattr("time.monotonic", lambda: float(next(ticks)))
    pages = PageProvider(tensors)
    pages.provide(5.0)  # until 5: looks at the clock at 1, 2, 3 and 4
    assert not pages.is_done
    assert [num_resident_bytes(tensor) for tensor in tensors] == [2 * CHUNK, CHUNK, CHUNK]
    pages.provide(5.0)
    assert pages.is_done


def test_a_system_that_cannot_leaves_it_to_the_first_touch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host_pages, "_MADV_POPULATE_WRITE", 9999)
    tensor = small_pages(CHUNK)
    pages = PageProvider([tensor])
    pages.provide(60.0)
    assert pages.is_done
    assert num_resident_bytes(tensor) == 0
    assert not tensor.any()


def test_mapped_zeros_have_their_shape_and_dtype() -> None:
    zeros = map_zeros((3, 5, 7), torch.bfloat16)
    assert zeros.shape == (3, 5, 7)
    assert zeros.dtype is torch.bfloat16
    assert not zeros.any()
    assert map_zeros((0, 4), torch.float32).shape == (0, 4)


@pytest.mark.parametrize("num_threads", [1, 3])
def test_what_goes_wrong_in_a_thread_is_not_lost(
    monkeypatch: pytest.MonkeyPatch, num_threads: int
) -> None:
    pages = PageProvider([small_pages(CHUNK)])
    monkeypatch.setattr(pages, "_provide_chunk", lambda index: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        pages.provide(60.0, num_threads=num_threads)
