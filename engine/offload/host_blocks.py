"""Host memory for KV blocks, and the copies between it and a rank's KV cache."""

from __future__ import annotations

import contextlib
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from batchmill.engine.errors import ConfigError
from batchmill.engine.memory.device_memory import gib
from batchmill.engine.memory.kv_cache import KVCache
from batchmill.engine.memory.prefaulted_pages import PrefaultedPages, map_zeros

#: Blocks of a GPU that are gathered, or scattered, at once.
STAGING_BLOCKS = 8
#: Blocks that are copied to measure the speed of copies, at most.
_NUM_MEASURED = 16

#: Takes block ids on the device, and slots on the host.
Copy = Callable[[Sequence[int], Sequence[int]], None]


class HostBlocks:
    """Owns host memory for blocks of one rank's KV cache; a slot has a block of all layers.

    On a CPU a copy is done when the call returns. On a GPU it is queued on a stream of its own:

    - A block is gathered from all layers into a staging buffer, so that it crosses the bus in one
      copy of some MiB. Slots are page-locked, and each is one contiguous piece.
    - A store needs no wait for the stream of the steps: the pool caches a block once the host knows
      the tokens that followed it, so its content is complete.
    - A restore needs none either, because no step in flight writes to a free block, except after
      blocks were zeroed (`wait_for_zeros`).
    - The stream of the steps waits for the copies, so the next step, which may overwrite a stored
      block and reads restored ones, comes after them. A step in flight runs beside them.
    - All copies are in one order, and only they touch the slots: a slot is never overwritten while
      it is read.

    Attributes:
        num_slots: Blocks that fit.
        block_bytes: Bytes of one block.
        on_store: Called with the arguments of each `store`, so that other ranks do the same.
        on_restore: The same for `restore`.
    """

    def __init__(self, kv_cache: KVCache, num_slots: int, *, stages: bool | None = None) -> None:
        """Map the memory; on a GPU, page-lock it, which takes some seconds for each 100 GiB.

        Args:
            kv_cache: Its blocks are copied. Its tensors must stay where they are.
            num_slots: Blocks to make room for.
            stages: Whether blocks go through a staging buffer; None is only on a GPU.

        Raises:
            ConfigError: the system refuses to map or page-lock so much memory.
        """
        tensors = [tensor for layer in kv_cache.layers for tensor in layer]
        device = tensors[0].device
        self._device = device
        self._layers = [_as_rows(tensor) for tensor in tensors]
        width, dtype = self._layers[0].shape[1], self._layers[0].dtype
        self.num_slots = num_slots
        self.block_bytes = len(tensors) * width * dtype.itemsize
        shape = (num_slots, len(tensors), width)
        try:
            self._slots = map_zeros(shape, dtype)
        except OSError as error:
            raise _too_large(self.num_bytes, f"map it ({error.strerror})") from error
        self._pages: PrefaultedPages | None = None
        self._staging: Tensor | None = None
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)
            self._page_lock()
        else:
            self._pages = PrefaultedPages([self._slots])
        if stages if stages is not None else device.type == "cuda":
            self._staging = torch.empty((STAGING_BLOCKS, *shape[1:]), dtype=dtype, device=device)
        self.on_store: Copy | None = None
        self.on_restore: Copy | None = None
        self.wait_for_zeros()

    @property
    def num_bytes(self) -> int:
        """Bytes of all slots."""
        return self.num_slots * self.block_bytes

    def store(self, block_ids: Sequence[int], slots: Sequence[int]) -> None:
        """Copy blocks of the device into slots of the host."""
        if self.on_store is not None:
            self.on_store(block_ids, slots)
        with self._copying():
            if self._staging is None:
                self._store_at_once(block_ids, slots)
            else:
                for start in range(0, len(slots), STAGING_BLOCKS):
                    some = slice(start, start + STAGING_BLOCKS)
                    self._store_staged(self._staging, block_ids[some], slots[some])

    def restore(self, block_ids: Sequence[int], slots: Sequence[int]) -> None:
        """Copy slots of the host into blocks of the device."""
        if self.on_restore is not None:
            self.on_restore(block_ids, slots)
        with self._copying():
            if self._staging is None:
                self._restore_at_once(block_ids, slots)
            else:
                for start in range(0, len(slots), STAGING_BLOCKS):
                    some = slice(start, start + STAGING_BLOCKS)
                    self._restore_staged(self._staging, block_ids[some], slots[some])

    def wait_for_zeros(self) -> None:
        """Let later copies wait for all that is queued on the stream of the steps."""
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self._device))

    def prefault(self, timeout_s: float) -> bool:
        """Use spare time as `KVCache.prefault` does; return whether nothing is left to do."""
        if self._pages is None:
            return True
        self._pages.prefault(timeout_s)
        return self._pages.is_done

    def measured_bytes_per_s(self) -> float:
        """Copy some blocks of an unused cache to the host and back; return the speed of copies."""
        num_blocks = min(_NUM_MEASURED, self.num_slots, len(self._layers[0]))
        numbers = range(num_blocks)
        fastest_s = float("inf")
        for _ in range(3):  # the first one touches new memory
            self._synchronize()
            started_at_s = time.perf_counter()
            self.store(numbers, numbers)
            self.restore(numbers, numbers)
            self._synchronize()
            fastest_s = min(fastest_s, time.perf_counter() - started_at_s)
        return 2 * num_blocks * self.block_bytes / fastest_s

    def _store_at_once(self, block_ids: Sequence[int], slots: Sequence[int]) -> None:
        blocks, places = torch.tensor(list(block_ids)), torch.tensor(list(slots))
        for index, layer in enumerate(self._layers):
            self._slots.select(1, index).index_copy_(0, places, layer.index_select(0, blocks))

    def _restore_at_once(self, block_ids: Sequence[int], slots: Sequence[int]) -> None:
        blocks, places = torch.tensor(list(block_ids)), torch.tensor(list(slots))
        for index, layer in enumerate(self._layers):
            layer.index_copy_(0, blocks, self._slots.select(1, index).index_select(0, places))

    def _store_staged(
        self, staging: Tensor, block_ids: Sequence[int], slots: Sequence[int]
    ) -> None:
        blocks, staged = self._upload(block_ids), staging[: len(slots)]
        for index, layer in enumerate(self._layers):
            staged.select(1, index).copy_(layer.index_select(0, blocks))
        for place, slot in enumerate(slots):
            self._slots[slot].copy_(staged[place], non_blocking=True)

    def _restore_staged(
        self, staging: Tensor, block_ids: Sequence[int], slots: Sequence[int]
    ) -> None:
        blocks, staged = self._upload(block_ids), staging[: len(slots)]
        for place, slot in enumerate(slots):
            staged[place].copy_(self._slots[slot], non_blocking=True)
        for index, layer in enumerate(self._layers):
            layer.index_copy_(0, blocks, staged.select(1, index))

    def _upload(self, numbers: Sequence[int]) -> Tensor:
        """Return numbers on the device; a copy from pageable memory would wait for the stream."""
        tensor = torch.tensor(list(numbers))
        if self._stream is None:
            return tensor
        return tensor.pin_memory().to(self._device, non_blocking=True)

    @contextlib.contextmanager
    def _copying(self) -> Iterator[None]:
        """Queue copies on their own stream, and let the stream of the steps wait for them."""
        stream = self._stream
        on_stream: AbstractContextManager[object] = (
            nullcontext() if stream is None else torch.cuda.stream(stream)
        )
        with torch.inference_mode(), on_stream:
            yield
        if stream is not None:
            torch.cuda.current_stream(self._device).wait_stream(stream)

    def _synchronize(self) -> None:
        if self._stream is not None:
            self._stream.synchronize()

    def _page_lock(self) -> None:
        """Page-lock the slots in place: torch's own allocator would round them up to a power of 2.

        Source: cudaHostRegister in the CUDA runtime's API.
        """
        status = int(
            torch.cuda.cudart().cudaHostRegister(self._slots.data_ptr(), self.num_bytes, 0)
        )
        if status != 0:
            raise _too_large(self.num_bytes, f"page-lock it (cudaHostRegister returned {status})")
        unlock = weakref.finalize(self, _unlock, self._slots, self._stream)
        unlock.atexit = False  # the process's end does it, without calls that may hang


def _unlock(slots: Tensor, stream: torch.cuda.Stream | None) -> None:
    with contextlib.suppress(RuntimeError):  # the device may be lost
        if stream is not None:
            stream.synchronize()
        torch.cuda.cudart().cudaHostUnregister(slots.data_ptr())


def _as_rows(tensor: Tensor) -> Tensor:
    """View a layer's keys or values as [num_blocks, width] of the widest integers that fit."""
    rows = tensor.view(torch.uint8).view(len(tensor), -1)
    for dtype in (torch.int64, torch.int32, torch.int16):
        if rows.shape[1] % dtype.itemsize == 0:
            return rows.view(dtype)
    return rows


def _too_large(num_bytes: int, what: str) -> ConfigError:
    return ConfigError(
        f"kv_host_bytes asks for {num_bytes} bytes ({gib(num_bytes)} GiB) of host memory, and the "
        f"system refuses to {what}: lower kv_host_bytes, or raise the limits on this process's "
        "memory (ulimit -v, ulimit -l)"
    )
