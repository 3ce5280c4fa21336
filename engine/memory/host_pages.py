"""Memory of tensors on the host that is mapped now and provided by the system ahead of its use."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import math
import mmap
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

#: `madvise`: provide pages as if they were written to, their content untouched. Linux 5.14 and up;
#: Python has no name for it.
_MADV_POPULATE_WRITE = 23
#: Bytes that one call provides: one huge page, which took up to 3.5 ms.
_CHUNK_BYTES = 2 * 1024**2

_log = logging.getLogger(__name__)


def map_zeros(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Zeros on the host, of pages that the system clears when they are first touched.

    `torch.zeros` clears all of them at once, used or not: 4 GiB took 1.7 s of one core. Mapped here
    and not by the C library, which hands out and clears memory that it has from before. In huge
    pages where the system gives them: attention over 64 x 1,024 tokens took 12 % less time.
    """
    num_bytes = math.prod(shape) * dtype.itemsize
    if num_bytes == 0:
        return torch.zeros(tuple(shape), dtype=dtype)
    pages = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(pages, dtype=torch.uint8).view(dtype).view(tuple(shape))


class PageProvider:
    """Has the system provide the pages of mapped tensors before a step needs them.

    The first touch of a MiB took from 0.05 ms to 3 ms, the latter where a virtual machine has to
    ask its host. A step that fills fresh KV blocks pays for it: up to a tenth of a batch's time.
    Here it is paid while nobody waits. The order is that in which blocks go out: the first chunk of
    every tensor, then the second of each.

    Where the system does not know how (before Linux 5.14) or has no memory to give, it stays with
    the first touch.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        """Take on tensors made by `map_zeros`; they must live as long as this does."""
        self._tensors = tensors
        longest = max((tensor.nbytes for tensor in tensors), default=0)
        self._num_rounds = -(-longest // _CHUNK_BYTES)
        self._next = 0
        self._lock = threading.Lock()
        self._advise = _find_madvise()

    @property
    def is_done(self) -> bool:
        """Whether there is nothing left that could be provided."""
        return self._advise is None or self._next >= self._num_rounds * len(self._tensors)

    def provide(self, timeout_s: float, *, num_threads: int = 1) -> None:
        """Go on for some time, or until all is provided.

        Args:
            timeout_s: Seconds after which no further chunk is begun.
            num_threads: Threads that do it side by side; more than 1 costs the making of them.
        """
        until_s = time.monotonic() + timeout_s
        if num_threads == 1:
            return self._work(until_s)
        with ThreadPoolExecutor(num_threads) as pool:
            workers = [pool.submit(self._work, until_s) for _ in range(num_threads)]
        for worker in workers:
            worker.result()  # raises what it raised
        return None

    def _work(self, until_s: float) -> None:
        while not self.is_done and time.monotonic() < until_s:
            with self._lock:
                index = self._next
                self._next += 1
            self._provide_chunk(index)

    def _provide_chunk(self, index: int) -> None:
        chunk, which = divmod(index, len(self._tensors))
        tensor, advise = self._tensors[which], self._advise
        start = chunk * _CHUNK_BYTES
        num_bytes = min(_CHUNK_BYTES, tensor.nbytes - start)
        if advise is None or num_bytes <= 0:
            return
        if advise(tensor.data_ptr() + start, num_bytes, _MADV_POPULATE_WRITE) != 0:
            error = ctypes.get_errno()
            _log.info("KV cache pages come with their first use: madvise says errno %d", error)
            self._advise = None


def _find_madvise() -> Callable[[int, int, int], int] | None:
    """The C library's `madvise`, which runs without the interpreter's lock; None without one."""
    function = getattr(ctypes.CDLL(None, use_errno=True), "madvise", None)
    if function is None:
        return None
    function.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    function.restype = ctypes.c_int
    return function  # type: ignore[no-any-return]
