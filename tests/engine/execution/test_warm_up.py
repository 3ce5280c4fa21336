"""Warm-up compiles all kernels that an engine can launch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from batchmill.engine.execution.warm_up import warm_up_kernels
from batchmill.engine.memory.kv_cache import KVCache

from ...support.tiny_models import NATIVE, random_model
from ..models.test_decoder import native_model


def test_no_step_with_prompts_or_drafts_compiles_a_kernel_or_reads_a_tensor() -> None:
    """For replayed decode steps see tests/engine/models/test_decoder_triton.py."""
    pytest.importorskip("triton", reason="triton is not installed; `make setup` installs it")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    script = Path(__file__).parent / "launches_on_meta.py"
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, env=environment, timeout=200
    )
    assert done.returncode == 0, done.stderr[-3000:]
    kinds = ("dense", "dense, fp8 cache", "sparse", "sparse, fp8 weights")
    assert json.loads(done.stdout) == {kind: [] for kind in kinds}


def test_warming_up_leaves_the_cache_as_it_was(tmp_path: Path) -> None:
    model = native_model(tmp_path, random_model(NATIVE["Qwen3"], tmp_path).config)
    kv_cache = KVCache(
        num_layers=model.config.num_layers,
        num_blocks=3,
        block_size=4,
        num_kv_heads=model.config.num_kv_heads,
        head_dim=model.config.head_dim,
        dtype=model.dtype,
        device="cpu",
    )
    held = [tensor for layer in kv_cache.layers for tensor in layer]
    for tensor in held:
        tensor.fill_(0.25)
    warm_up_kernels(model, kv_cache)
    assert all(torch.equal(tensor, torch.full_like(tensor, 0.25)) for tensor in held)
