"""Every family's tokens and logits are transformers' own, natively and through transformers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import HunYuanDenseV1Config, PreTrainedModel

from batchmill.engine import Engine, EngineConfig
from batchmill.engine.errors import ConfigError
from batchmill.engine.loading.loading import LoadedModel, load_model

from ...support.tiny_models import ALL, NATIVE, OTHERS, SIZES, random_model
from ..greedy_checks import WAYS, Tokens, greedy_of_transformers
from ..model_steps import full_logits, largest_error, make_requests, make_runner


@dataclass
class TinyModel:
    folder: Path
    hf_model: PreTrainedModel
    expected: Tokens


@pytest.fixture(scope="module")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TinyModel]:
    made = {}
    for name, config in ALL.items():
        folder = tmp_path_factory.mktemp("model")
        hf_model = random_model(config, folder)
        made[name] = TinyModel(folder, hf_model, greedy_of_transformers(hf_model))
    return made


def load(tiny: TinyModel, **settings: Any) -> LoadedModel:
    return load_model(str(tiny.folder), **{"dtype": "float32", "device": "cpu", **settings})


def wrong_ways(tiny: TinyModel, loaded: LoadedModel) -> list[str]:
    return [
        way
        for way, compute in WAYS.items()
        if compute(tiny.folder, loaded, tiny.expected) != tiny.expected
    ]


@pytest.mark.parametrize("name", ALL)
def test_greedy_tokens_equal_transformers_however_computed(
    name: str, tiny_models: dict[str, TinyModel]
) -> None:
    tiny = tiny_models[name]
    assert wrong_ways(tiny, load(tiny)) == []


@pytest.mark.parametrize("name", NATIVE)
def test_transformers_computes_native_models_too(
    name: str, tiny_models: dict[str, TinyModel]
) -> None:
    tiny = tiny_models[name]
    loaded = load(tiny, model_impl="transformers")
    assert wrong_ways(tiny, loaded) == []
    assert loaded.identity != load(tiny).identity


@pytest.mark.parametrize("name", [*OTHERS, "Gemma 3 text", "Mixtral"])
@pytest.mark.parametrize("cuts", [[40], [5, 11, 3, 21]], ids=str)
def test_logits_with_our_attention_equal_those_of_transformers(
    name: str, cuts: list[int], tiny_models: dict[str, TinyModel]
) -> None:
    tiny = tiny_models[name]
    model = load(tiny, model_impl="transformers").model
    requests = make_requests([1, 7, 33, 16, 40], model.config.vocab_size)
    want = full_logits(tiny.hf_model, requests)
    assert max(logits.abs().max().item() for logits in want) > 1  # logits worth comparing
    assert largest_error(make_runner(model), requests, want, cuts) <= 1e-4


def test_norms_after_the_rotation_undo_the_factor_of_yarn(tmp_path: Path) -> None:
    rope: dict[str, Any] = {
        "rope_type": "yarn",
        "rope_theta": 1e4,
        "factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    config = HunYuanDenseV1Config(**SIZES, head_dim=16, rope_parameters=rope)
    hf_model = random_model(config, tmp_path)
    loaded = load_model(str(tmp_path), dtype="float32", device="cpu", model_impl="native")
    requests = make_requests([1, 7, 33, 40], loaded.config.vocab_size)
    want = full_logits(hf_model, requests)
    assert largest_error(make_runner(loaded.model), requests, want, [5, 11, 3, 21]) <= 1e-4


def test_a_wider_base_needs_no_head_dim(tmp_path: Path) -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 1e4, "alpha": 1000.0, "factor": 1.0}
    hidden_size, num_heads = SIZES["hidden_size"], SIZES["num_attention_heads"]
    config = HunYuanDenseV1Config(**SIZES, head_dim=hidden_size // num_heads, rope_parameters=rope)
    hf_model = random_model(config, tmp_path)
    path = tmp_path / "config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "head_dim": None}))
    loaded = load_model(str(tmp_path), dtype="float32", device="cpu", model_impl="native")
    requests = make_requests([1, 7, 33, 40], loaded.config.vocab_size)
    want = full_logits(hf_model, requests)
    assert largest_error(make_runner(loaded.model), requests, want, [5, 11, 3, 21]) <= 1e-4


def test_longrope_is_refused_beyond_its_training_context(
    tiny_models: dict[str, TinyModel],
) -> None:
    tiny = tiny_models["Phi-3, longrope, part of each head rotated"]
    for model_impl in ("native", "transformers"):
        loaded = load(tiny, model_impl=model_impl)
        config = EngineConfig(
            model=str(tiny.folder), dtype="float32", device="cpu", max_model_len=65
        )
        with pytest.raises(ConfigError, match=r"max_model_len is 65.*at most 64 tokens"):
            Engine(config, loaded=loaded)


def test_a_layer_of_glm_that_predicts_further_tokens_is_ignored(tmp_path: Path) -> None:
    config = NATIVE["GLM-4.5, first layer dense, groups of experts, shares scaled"]
    hf_model = random_model(config, tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    last, extra = f"layers.{config.num_hidden_layers - 1}.", f"layers.{config.num_hidden_layers}."
    stored |= {
        name.replace(last, extra): weight.clone()
        for name, weight in stored.items()
        if f".{last}" in name
    }
    stored[f"model.{extra}eh_proj.weight"] = torch.ones(4, 8)
    save_file(stored, tmp_path / "model.safetensors", metadata={"format": "pt"})

    loaded = load_model(str(tmp_path), dtype="float32", device="cpu", model_impl="native")

    requests = make_requests([7, 33], loaded.config.vocab_size)
    want = full_logits(hf_model, requests)
    assert largest_error(make_runner(loaded.model), requests, want, [40]) <= 1e-4
