"""The size of the KV cache, and the zeroing of a failed request's blocks."""

from __future__ import annotations

import resource
from typing import Any

import psutil
import pytest
import torch

from batchmill.engine.errors import ConfigError
from batchmill.engine.memory.kv_cache import (
    MAX_DEFAULT_CPU_BYTES,
    KVCache,
    default_cpu_kv_cache_bytes,
)


def allocate(**changes: Any) -> KVCache:
    arguments: dict[str, Any] = {
        "num_layers": 3,
        "num_kv_heads": 2,
        "head_dim": 8,
        "dtype": torch.bfloat16,
        "device": "cpu",
        "block_size": 4,
        "max_model_len": 10,
    }
    return KVCache.allocate(**(arguments | changes))


def test_the_blocks_that_fit_are_allocated() -> None:
    block_bytes = 2 * 3 * 4 * 2 * 8 * 2
    cache = allocate(kv_cache_bytes=10 * block_bytes + block_bytes - 1)
    assert cache.num_blocks == 10
    assert cache.num_tokens == 40
    assert cache.num_bytes == 10 * block_bytes
    assert len(cache.layers) == 3
    for keys, values in cache.layers:
        assert keys.shape == values.shape == (10, 4, 2, 8)
        assert keys.dtype == torch.bfloat16
        assert not keys.any()


def test_a_cache_below_one_request_is_refused_with_the_required_bytes() -> None:
    block_bytes = 2 * 3 * 4 * 2 * 8 * 2
    with pytest.raises(ConfigError, match=f"at least {3 * block_bytes}"):
        allocate(kv_cache_bytes=3 * block_bytes - 1)
    assert allocate(kv_cache_bytes=3 * block_bytes).num_blocks == 3


def test_a_cache_above_the_limit_on_address_space_is_refused_with_the_remedy() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = psutil.Process().memory_info().vms + 256 * 1024**2
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        with pytest.raises(
            ConfigError, match=rf"{1024**3}.*limited to {limit} bytes: lower kv_cache_bytes"
        ):
            allocate(kv_cache_bytes=1024**3)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def test_the_default_size_is_a_bounded_share_of_free_memory() -> None:
    assert 0 < default_cpu_kv_cache_bytes() <= MAX_DEFAULT_CPU_BYTES


def test_a_cache_takes_no_memory_before_it_is_used() -> None:
    before = psutil.Process().memory_info().rss
    cache = allocate(kv_cache_bytes=1024**3)
    keys, _ = cache.layers[1]
    assert psutil.Process().memory_info().rss - before < 64 * 1024**2
    assert not keys[::1000].any()


def test_zeroed_blocks_hold_no_nan() -> None:
    cache = allocate(kv_cache_bytes=10_000)
    for keys, values in cache.layers:
        keys.fill_(float("nan"))
        values.fill_(float("nan"))
    cache.zero_blocks([2, 5])
    for tensors in cache.layers:
        for tensor in tensors:
            assert not tensor[[2, 5]].any()
            assert tensor[[0, 1, 3, 4]].isnan().all()
    cache.zero_blocks([])
