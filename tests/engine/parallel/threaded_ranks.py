"""All ranks of a model in one process, each in its thread: real shards, and real gloo."""

from __future__ import annotations

import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._C._distributed_c10d import HashStore

from batchmill.engine.loading.computation import load_shard
from batchmill.engine.loading.load_options import LoadOptions
from batchmill.engine.loading.loading import LoadedModel, load_model
from batchmill.engine.memory.kv_cache import KVCache
from batchmill.engine.models.model import Model
from batchmill.engine.parallel.collectives import Collectives
from batchmill.engine.step.step_inputs import StepInputs

_CPU = torch.device("cpu")


class ThreadedModel:
    """Computes each step on all ranks; rank 0 in the caller's thread."""

    def __init__(self, shards: list[Model], pool: ThreadPoolExecutor) -> None:
        self._own, *self._others = shards
        self._pool = pool
        self._caches: weakref.WeakKeyDictionary[KVCache, list[KVCache]] = (
            weakref.WeakKeyDictionary()
        )
        self.config = self._own.config
        self.dtype = self._own.dtype
        self.device = self._own.device

    def forward(self, inputs: StepInputs, kv_cache: KVCache, logits: Tensor) -> Tensor | None:
        if kv_cache not in self._caches:
            self._caches[kv_cache] = [self._copy_of(kv_cache) for _ in self._others]
        caches = self._caches[kv_cache]
        futures = [
            self._pool.submit(_forward, shard, inputs, cache)
            for shard, cache in zip(self._others, caches, strict=True)
        ]
        states = self._own.forward(inputs, kv_cache, logits)
        for future in futures:
            future.result(timeout=60)
        return states

    def _copy_of(self, kv_cache: KVCache) -> KVCache:
        return KVCache(
            num_layers=self.config.num_layers,
            num_blocks=kv_cache.num_blocks,
            block_size=kv_cache.block_size,
            num_kv_heads=self.config.num_kv_heads,
            head_dim=self.config.head_dim,
            dtype=self.dtype,
            device=_CPU,
        )


def _forward(shard: Model, inputs: StepInputs, kv_cache: KVCache) -> None:
    torch.set_num_threads(1)  # of this thread
    with torch.inference_mode():
        shard.forward(inputs, kv_cache, torch.empty(0))


def load_threaded(folder: Path, num_ranks: int, **settings: Any) -> LoadedModel:
    """Load a model in float32, divided among ranks of this process."""
    ranks = [Collectives(rank, num_ranks, _CPU) for rank in range(num_ranks)]
    pool = ThreadPoolExecutor(num_ranks)
    store = HashStore()
    for future in [pool.submit(each.connect, store) for each in ranks]:
        future.result(timeout=60)
    loaded = load_model(str(folder), dtype="float32", device="cpu", ranks=ranks[0], **settings)
    options = [
        LoadOptions.checked(
            dtype="float32",
            device="cpu",
            quantization=None,
            model_impl="auto",
            max_model_len=None,
            linear=None,
            ranks=each,
        )
        for each in ranks[1:]
    ]
    shards = [loaded.model, *(load_shard(folder, each) for each in options)]
    return replace(loaded, model=ThreadedModel(shards, pool))
