"""A model that several ranks compute together, as the engine of rank 0 sees it."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from functools import partial
from typing import TypeAlias

import torch
from torch import Tensor

from batchmill.engine.errors import EngineError, RankError
from batchmill.engine.memory.device_memory import CudaMemory, MemoryProbe
from batchmill.engine.memory.kv_cache import KVCache
from batchmill.engine.model_shape import ModelShape
from batchmill.engine.models.model import Model
from batchmill.engine.offload.host_blocks import HostBlocks
from batchmill.engine.step.step_inputs import StepInputs

from .memory import MemoryOfRanks
from .messages import MakeCache, RestoreBlocks, StoreBlocks, ZeroBlocks
from .rank_processes import RankProcesses
from .step_buffer import StepBuffer

#: Longest time in which every rank allocates its KV cache.
_CACHE_TIMEOUT_S = 300.0


_CacheRef: TypeAlias = "weakref.ref[KVCache] | None"


class ParallelModel:
    """Computes steps on all ranks; implements `Model`.

    Each step's tensors are sent to the other ranks, and then all of them run their shard's
    `forward`. Whatever fails on one rank in a step leaves the others waiting for its part, so it
    ends all: `forward` raises `RankError` then and ever after.
    """

    def __init__(self, shard: Model, processes: RankProcesses, buffer: StepBuffer) -> None:
        """Take over the processes of the other ranks, which end with this object.

        Args:
            shard: Rank 0's shard.
            processes: The other ranks, connected.
            buffer: Carries steps to them.
        """
        self._shard = shard
        self._processes = processes
        self._buffer = buffer
        self._failure: RankError | None = None
        self._kv_cache: weakref.ref[KVCache] | None = None
        weakref.finalize(self, processes.end)

    @property
    def config(self) -> ModelShape:
        """Sizes of the model; key/value heads are those of a rank."""
        return self._shard.config

    @property
    def dtype(self) -> torch.dtype:
        """Number format of weights, activations and the KV cache."""
        return self._shard.dtype

    @property
    def device(self) -> torch.device:
        """Rank 0's device."""
        return self._shard.device

    @property
    def num_ranks(self) -> int:
        """Ranks that compute it, this one included."""
        return len(self._processes.pids) + 1

    @property
    def rank_pids(self) -> list[int]:
        """Process ids of the other ranks, from rank 1 on."""
        return self._processes.pids

    def memory_probe(self) -> MemoryProbe | None:
        """Return a probe of all ranks' GPUs; None on a CPU."""
        if self.device.type != "cuda":
            return None
        return MemoryOfRanks(CudaMemory(self.device), self._processes)

    def share_cache(self, kv_cache: KVCache, num_host_blocks: int = 0) -> None:
        """Let every rank allocate its part of a cache, with the same blocks; once per engine.

        Args:
            kv_cache: Rank 0's part.
            num_host_blocks: Blocks that each rank makes room for in host memory.

        Raises:
            RankError: a rank cannot allocate it.
        """
        self._processes.send(MakeCache(kv_cache.num_blocks, kv_cache.block_size, num_host_blocks))
        self._processes.wait_done(_CACHE_TIMEOUT_S)
        self._kv_cache = weakref.ref(kv_cache)
        kv_cache.on_zero = partial(self._zero_blocks, self._kv_cache)

    def share_host_blocks(self, host_blocks: HostBlocks) -> None:
        """Let every rank copy its part of the blocks that rank 0 copies, after `share_cache`."""
        host_blocks.on_store = partial(self._store_blocks, self._kv_cache)
        host_blocks.on_restore = partial(self._restore_blocks, self._kv_cache)

    def forward(self, inputs: StepInputs, kv_cache: KVCache, logits: Tensor) -> Tensor | None:
        """Run one step on all ranks; see `Model.forward`.

        Raises:
            RankError: a rank failed; this model cannot compute anything any more.
            EngineError: another engine uses the ranks now.
        """
        if self._kv_cache is not None and self._kv_cache() is not kv_cache:
            raise EngineError("another engine uses the ranks of this model now: use that one")
        if self._failure is not None:
            raise self._failure
        step = self._buffer.put(inputs)
        try:
            self._processes.send(step)
            self._buffer.publish()
            return self._shard.forward(inputs, kv_cache, logits)
        except BaseException as error:  # also a Ctrl-C: the other ranks are within the step
            self._failure = failure = (
                error if isinstance(error, RankError) else self._processes.failure(error)
            )
            self._processes.end()
            if not isinstance(error, Exception):
                raise
            raise failure from error

    def _zero_blocks(self, kv_cache: weakref.ref[KVCache], block_ids: Sequence[int]) -> None:
        if self._kv_cache is kv_cache:  # else the ranks have the blocks of another engine
            self._processes.send(ZeroBlocks(list(block_ids)))

    def _store_blocks(
        self, kv_cache: _CacheRef, block_ids: Sequence[int], slots: Sequence[int]
    ) -> None:
        if self._kv_cache is kv_cache:
            self._processes.send(StoreBlocks(list(block_ids), list(slots)))

    def _restore_blocks(
        self, kv_cache: _CacheRef, block_ids: Sequence[int], slots: Sequence[int]
    ) -> None:
        if self._kv_cache is kv_cache:
            self._processes.send(RestoreBlocks(list(block_ids), list(slots)))
