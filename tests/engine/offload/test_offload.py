"""Planned copies, done before a step: what is left to do if one of them fails."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from batchmill.engine.memory.kv_cache import KVCache
from batchmill.engine.offload.host_blocks import HostBlocks
from batchmill.engine.offload.offload import KVOffload

A, B = b"a" * 16, b"b" * 16


def test_a_block_that_was_zeroed_after_its_copy_is_not_copied_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kv_cache = KVCache(
        num_layers=1,
        num_blocks=8,
        block_size=2,
        num_kv_heads=1,
        head_dim=4,
        dtype=torch.float32,
        device="cpu",
    )
    (keys, values) = kv_cache.layers[0]
    for block_id in range(8):
        keys[block_id], values[block_id] = block_id + 1, -block_id - 1
    host = HostBlocks(kv_cache, 4)
    offload = KVOffload(kv_cache, host, bytes_per_s=10**15)
    offload.index.keep(A, 0)
    offload.move_blocks([])

    # One block is given up and zeroed for its next holder, and another one comes back.
    offload.index.keep(B, 3)
    offload.index.hold([A])
    offload.index.restore([A], [5])

    def fail(block_ids: Sequence[int], slots: Sequence[int]) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(host, "restore", fail)
        with pytest.raises(torch.OutOfMemoryError):
            offload.move_blocks([3])
    assert offload.index.planned.restores
    offload.move_blocks([3])
    offload.index.restore([B], [6])
    offload.move_blocks([])

    assert (keys[6] == 4).all()
    assert (values[6] == -4).all()
    assert (keys[5] == 1).all()
    counts = offload.counts
    assert (counts.num_stored, counts.num_restored) == (2, 2)
    offload.index.check_invariants()
