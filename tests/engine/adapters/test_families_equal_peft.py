"""Adapters of other families than Llama give the tokens that PEFT gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from batchmill.engine import Engine, EngineConfig, SamplingParams
from batchmill.engine.adapters.folder import read_files, store_files

from ...support.tiny_models import NATIVE, VOCAB_SIZE, random_model
from ..tiny_model import run

pytest.importorskip("peft")
from .peft_folders import ATTENTION, NETWORK, greedy, save_adapter

NUM_TOKENS = 6
PROMPT = [(7 * index) % (VOCAB_SIZE - 20) + 10 for index in range(17)]
GREEDY = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True)
#: Modules of the first adapter; the second one changes the output of attention only.
DENSE, FUSED = [*ATTENTION, *NETWORK], ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]
FAMILIES = {
    "Llama, every bias, llama3 RoPE, explicit head_dim": DENSE,
    "Ministral, windows in some layers": DENSE,
    "Gemma": DENSE,
    "Gemma 3 text": DENSE,
    "Qwen2, tied": DENSE,
    "Qwen3": DENSE,
    "ERNIE 4.5, biases": DENSE,
    "GLM-4": [*ATTENTION, "gate_up_proj", "down_proj"],
    "HunYuan dense": DENSE,
    "Granite": DENSE,
    "OLMo 2": DENSE,
    "Qwen3-MoE": ATTENTION,
    "Mixtral": ATTENTION,
    "Phi-3, sliding window": FUSED,
    "Phi-3, longrope, part of each head rotated": ["qkv_proj", "down_proj"],
}


@pytest.mark.parametrize("family", FAMILIES)
def test_mixed_batch_of_a_family_equals_peft(tmp_path: Path, family: str) -> None:
    model: Any = random_model(NATIVE[family], tmp_path / "model")
    expected: dict[str | None, list[int]] = {None: greedy(model, None, PROMPT, NUM_TOKENS)}
    for seed, targets in enumerate((FAMILIES[family], ["o_proj"])):
        folder = tmp_path / f"peft-{seed}"
        files = read_files(
            save_adapter(model, folder, seed=seed, r=3 + seed, target_modules=targets)
        )
        store_files(files, tmp_path / "store")
        expected[files.digest] = greedy(model, files.path, PROMPT, NUM_TOKENS)
    assert len({tuple(tokens) for tokens in expected.values()}) == len(expected)
    engine = Engine(
        EngineConfig(
            model=str(tmp_path / "model"),
            dtype="float32",
            device="cpu",
            max_model_len=64,
            max_num_seqs=4,
            max_num_batched_tokens=20,
            kv_cache_bytes=2**20,
            lora_folder=str(tmp_path / "store"),
        )
    )
    for digest in expected:
        engine.add_request(str(digest), PROMPT, GREEDY, lora=digest)
    outputs = {name: each[-1].token_ids for name, each in run(engine).items()}
    assert outputs == {str(digest): tokens for digest, tokens in expected.items()}
