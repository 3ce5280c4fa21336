"""Adapters are loaded by a thread, make room for each other, and are checked before each load."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from batchmill.engine.adapters.folder import read_files, store_files
from batchmill.engine.adapters.pool import AdapterPool
from batchmill.engine.models.adapted_layers import LoraSite
from batchmill.engine.request.adapter import Adapter

from ...support.adapters import HIDDEN, INNER, write_adapter
from ...support.processes import wait_until

SITES = [
    [
        LoraSite(("self_attn.q_proj", "self_attn.v_proj"), (HIDDEN, 16), HIDDEN),
        LoraSite(("self_attn.o_proj",), (HIDDEN,), HIDDEN),
        LoraSite(("mlp.gate_proj", "mlp.up_proj"), (INNER, INNER), HIDDEN),
        LoraSite(("mlp.down_proj",), (HIDDEN,), INNER),
    ]
] * 2


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


def add(store: Path, seed: int) -> str:
    files = read_files(write_adapter(store.parent / f"peft-{seed}", seed))
    store_files(files, store)
    return files.digest


def make_pool(store: Path, max_bytes: int = 2**30) -> AdapterPool:
    return AdapterPool(
        *(store, SITES),
        dtype=torch.float32,
        device=torch.device("cpu"),
        max_bytes=max_bytes,
        max_rank=8,
    )


def load(pool: AdapterPool, adapter: Adapter) -> None:
    """Load an adapter as steps do while no request can run."""

    def is_ready() -> bool:
        pool.load_ahead([adapter], ())
        pool.wait()
        return pool.is_ready(adapter)

    wait_until(is_ready, "the adapter")


def test_an_adapter_that_no_request_waits_for_any_more_makes_room(store: Path) -> None:
    digests = [add(store, seed) for seed in (1, 2)]
    num_bytes = make_pool(store).find(digests[0]).num_bytes
    pool = make_pool(store, max_bytes=num_bytes)
    first, second = map(pool.find, digests)
    pool.load_ahead([first], ())  # and then its request is aborted
    load(pool, second)
    assert pool.resident == [second.digest]
    assert first.weights is None
    assert pool.num_bytes == num_bytes


def test_files_that_were_changed_since_they_were_found_are_not_loaded(store: Path) -> None:
    digest = add(store, seed=1)
    pool = make_pool(store)
    adapter = pool.find(digest)
    write_adapter(store / digest, seed=2)
    load(pool, adapter)
    assert adapter.weights is None
    assert adapter.problem is not None
    assert "were changed" in adapter.problem
    write_adapter(store / digest, seed=1)
    restored = pool.find(digest)
    load(pool, restored)
    assert (restored.problem, pool.resident) == (None, [digest])
