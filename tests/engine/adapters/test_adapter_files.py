"""Adapters are refused by name, and their identity is their content."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from batchmill.engine.adapters.digest import WEIGHTS_FILE, adapter_digest
from batchmill.engine.adapters.folder import (
    check_unchanged,
    find_files,
    read_files,
    store_files,
)
from batchmill.engine.adapters.peft_config import CONFIG_FILE
from batchmill.engine.errors import AdapterError

MODULE = "base_model.model.model.layers.0.self_attn.q_proj"
CONFIG: dict[str, Any] = {
    "peft_type": "LORA",
    "base_model_name_or_path": "some/model",
    "r": 2,
    "lora_alpha": 4,
    "target_modules": ["q_proj", "v_proj"],
    "bias": "none",
}


def write(folder: Path, config: dict[str, Any] | None = None, seed: int = 0) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG_FILE).write_text(json.dumps({**CONFIG, **(config or {})}))
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        f"{MODULE}.lora_A.weight": torch.randn(2, 32, generator=generator),
        f"{MODULE}.lora_B.weight": torch.randn(32, 2, generator=generator),
    }
    save_file(tensors, folder / WEIGHTS_FILE)
    return folder


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"lora_bias": True}, "lora_bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"alora_invocation_tokens": [1, 2]}, "aLoRA"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4"),
        ({"init_lora_weights": "olora"}, "olora"),
        ({"init_lora_weights": "lora_ga"}, "lora_ga"),
        ({"loftq_config": {"loftq_bits": 4}}, "LoftQ"),
        ({"use_qalora": True}, "QALoRA"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices"),
        ({"target_parameters": ["experts.down_proj"]}, "fused experts"),
        ({"layer_replication": [[0, 1]]}, "repeated layers"),
        ({"fan_in_fan_out": True}, "transposed"),
        ({"peft_type": "IA3"}, "'IA3'"),
        ({"newer_than_this_version": 1}, "newer_than_this_version"),
        ({"r": 3}, "rank 3"),
        ({"r": 0}, "rank below 1"),
        ({"lora_alpha": None}, "lora_alpha"),
        ({"lora_alpha": float("nan")}, "lora_alpha"),
        ({"r": float("inf")}, "valid r"),
        ({"rank_pattern": {"(": 2}}, "rank_pattern"),
        ({"rank_pattern": {"(?i)q_proj": 2}}, "rank_pattern"),
        ({"alpha_pattern": [4]}, "alpha_pattern"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else None,
)
def test_what_is_not_computed_is_refused_by_name(
    tmp_path: Path, change: dict[str, Any], named: str
) -> None:
    with pytest.raises(AdapterError) as refused:
        read_files(write(tmp_path / "adapter", change))
    assert named in str(refused.value)


@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("base_model.model.model.embed_tokens.lora_embedding_A", "lora_embedding_A"),
        (f"{MODULE}.lora_magnitude_vector.weight", "lora_magnitude_vector"),
        ("base_model.model.model.layers.0.self_attn.k_proj.lora_A.weight", "only one"),
        (f"{MODULE.removeprefix('base_model.model.')}.lora_A.weight", "twice"),
    ],
)
def test_other_tensors_are_refused(tmp_path: Path, name: str, named: str) -> None:
    folder = write(tmp_path / "adapter")
    tensors = load_file(folder / WEIGHTS_FILE)
    save_file({**tensors, name: torch.zeros(2, 32)}, folder / WEIGHTS_FILE)
    with pytest.raises(AdapterError, match=named):
        read_files(folder)


def test_pickled_weights_are_not_read(tmp_path: Path) -> None:
    folder = write(tmp_path / "adapter")
    (folder / WEIGHTS_FILE).rename(folder / "adapter_model.bin")
    with pytest.raises(AdapterError, match="could run code"):
        read_files(folder)


def test_digest_is_of_the_content_and_not_of_names(tmp_path: Path) -> None:
    digest = adapter_digest(write(tmp_path / "one"))
    renamed = {"base_model_name_or_path": "/elsewhere", "target_modules": ["v_proj", "q_proj"]}
    assert adapter_digest(write(tmp_path / "other name", renamed)) == digest
    assert adapter_digest(write(tmp_path / "trained further", seed=1)) != digest
    assert adapter_digest(write(tmp_path / "another scale", {"lora_alpha": 8})) != digest


def test_versions_of_one_folder_lie_side_by_side(tmp_path: Path) -> None:
    source, store = tmp_path / "source", tmp_path / "store"
    first = read_files(write(source))
    store_files(first, store)
    second = read_files(write(source, seed=1))
    store_files(second, store)
    assert find_files(store, first.digest).digest == first.digest
    assert find_files(store, second.digest).digest == second.digest
    assert sorted(each.name for each in store.iterdir()) == sorted([first.digest, second.digest])


def test_changed_or_missing_versions_are_refused(tmp_path: Path) -> None:
    store = tmp_path / "store"
    files = read_files(write(tmp_path / "source"))
    stored = store_files(files, store)
    write(stored, seed=1)
    with pytest.raises(AdapterError, match="were changed"):
        check_unchanged(find_files(store, files.digest))
    store_files(files, store)  # the remedy
    check_unchanged(find_files(store, files.digest))
    assert [each.name for each in store.iterdir()] == [files.digest]
    shutil.rmtree(stored)
    for digest in (files.digest, "../source", "f" * 31):
        with pytest.raises(AdapterError, match="is not in this worker's folder"):
            find_files(store, digest)
