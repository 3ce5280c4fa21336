"""Memory that is mapped first and pre-faulted later."""

from __future__ import annotations

import ctypes
import mmap
from itertools import count

import pytest
import torch
from torch import Tensor

from batchmill.engine.memory import prefaulted_pages
from batchmill.engine.memory.prefaulted_pages import PrefaultedPages, map_zeros

CHUNK = prefaulted_pages._CHUNK_BYTES


def num_resident_bytes(tensor: Tensor) -> int:
    """Return how many bytes of a tensor are in memory."""
    num_pages = -(-tensor.nbytes // mmap.PAGESIZE)
    resident = (ctypes.c_ubyte * num_pages)()
    libc = ctypes.CDLL(None, use_errno=True)
    status = libc.mincore(
        ctypes.c_void_p(tensor.data_ptr()), ctypes.c_size_t(tensor.nbytes), resident
    )
    assert status == 0, ctypes.get_errno()
    return sum(page & 1 for page in resident) * mmap.PAGESIZE


def small_pages(num_bytes: int) -> Tensor:
    """Return zeros in small pages, of which only those that are touched become resident."""
    pages = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    pages.madvise(mmap.MADV_NOHUGEPAGE)
    return torch.frombuffer(pages, dtype=torch.uint8)


def test_prefaulting_makes_every_page_resident() -> None:
    tensors = [small_pages(3 * CHUNK + 4096), small_pages(CHUNK // 2)]
    assert [num_resident_bytes(tensor) for tensor in tensors] == [0, 0]
    pages = PrefaultedPages(tensors)
    pages.prefault(60.0)
    assert pages.is_done
    assert [num_resident_bytes(tensor) for tensor in tensors] == [t.nbytes for t in tensors]


@pytest.mark.parametrize("num_threads", [1, 3])
def test_prefaulting_keeps_written_contents(num_threads: int) -> None:
    tensors = [small_pages(CHUNK) for _ in range(5)]
    for number, tensor in enumerate(tensors):
        tensor[number * 5000 :].fill_(number)
    copies = [tensor.clone() for tensor in tensors]
    PrefaultedPages(tensors).prefault(60.0, num_threads=num_threads)
    assert all(map(torch.equal, tensors, copies))


def test_prefaulting_begins_with_the_first_blocks_of_every_tensor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tensors = [small_pages(2 * CHUNK) for _ in range(3)]
    ticks = count()
    monkeypatch.setattr("time.monotonic", lambda: float(next(ticks)))
    pages = PrefaultedPages(tensors)
    pages.prefault(5.0)  # begins at 0, and reads the clock at 1, 2, 3 and 4
    assert not pages.is_done
    assert [num_resident_bytes(tensor) for tensor in tensors] == [2 * CHUNK, CHUNK, CHUNK]
    pages.prefault(5.0)
    assert pages.is_done


def test_without_system_support_pages_become_resident_at_first_touch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(prefaulted_pages, "_MADV_POPULATE_WRITE", 9999)
    tensor = small_pages(CHUNK)
    pages = PrefaultedPages([tensor])
    pages.prefault(60.0)
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
def test_errors_in_a_prefault_thread_propagate(
    monkeypatch: pytest.MonkeyPatch, num_threads: int
) -> None:
    pages = PrefaultedPages([small_pages(CHUNK)])
    monkeypatch.setattr(pages, "_prefault_chunk", lambda index: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        pages.prefault(60.0, num_threads=num_threads)
