"""Configurations of mixtures that the tests of every family do not have: computed, or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    Ernie4_5_MoeConfig,
    Glm4MoeConfig,
    GraniteMoeConfig,
    PreTrainedConfig,
    Qwen2MoeConfig,
    Qwen3MoeConfig,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from batchmill.engine.errors import ModelLoadError, UnsupportedModelError
from batchmill.engine.loading.loading import load_model
from batchmill.engine.loading.weight_loading import load_weights
from batchmill.engine.models.decoder import DecoderModel
from batchmill.engine.models.families import read_model_config
from batchmill.engine.models.weights import ExpertWeights

from ...support.tiny_models import SIZES, random_model
from ..model_steps import full_logits, largest_error, make_requests, make_runner

_INNER = {"moe_intermediate_size": 40}


def qwen2(**values: Any) -> PreTrainedConfig:
    few = {"num_experts": 6, "num_experts_per_tok": 2, "shared_expert_intermediate_size": 24}
    return Qwen2MoeConfig(**{**SIZES, **_INNER, **few, **values})


def qwen3(**values: Any) -> PreTrainedConfig:
    few = {"num_experts": 6, "num_experts_per_tok": 2, "head_dim": 16}
    return Qwen3MoeConfig(**{**SIZES, **_INNER, **few, **values})


def glm(**values: Any) -> PreTrainedConfig:
    few = {"n_routed_experts": 8, "num_experts_per_tok": 3, "head_dim": 16}
    return Glm4MoeConfig(**{**SIZES, **_INNER, **few, **values})


def ernie(**values: Any) -> PreTrainedConfig:
    few = {"moe_num_experts": 6, "moe_k": 2, "moe_num_shared_experts": 1}
    return Ernie4_5_MoeConfig(**{**SIZES, **_INNER, **few, **values})


def granite(**values: Any) -> PreTrainedConfig:
    return GraniteMoeConfig(**{**SIZES, "num_local_experts": 6, "num_experts_per_tok": 2, **values})


COMPUTED: dict[str, PreTrainedConfig] = {
    "Qwen2, no shared expert": qwen2(shared_expert_intermediate_size=0),
    "Qwen2, no experts": qwen2(num_experts=0, num_experts_per_tok=0),
    "Qwen2, windows, shares normalised, no biases": qwen2(
        use_sliding_window=True,
        sliding_window=9,
        max_window_layers=2,
        norm_topk_prob=True,
        qkv_bias=False,
    ),
    "Qwen2, one dense layer, tied": qwen2(mlp_only_layers=[1], tie_word_embeddings=True),
    "Qwen3, no experts": qwen3(num_experts=0, num_experts_per_tok=0),
    "GLM, no shared expert, no dense layer": glm(n_shared_experts=0, first_k_dense_replace=0),
    "GLM, shares not normalised, scaled, a quarter rotated": glm(
        norm_topk_prob=False, routed_scaling_factor=2.5, partial_rotary_factor=0.25
    ),
    "GLM, fewer experts in the chosen groups than chosen": glm(n_group=4, topk_group=1),
    "GLM, all layers dense": glm(first_k_dense_replace=3),
    "ERNIE, no shared expert, a large least sum": ernie(moe_num_shared_experts=0, moe_norm_min=0.9),
    "ERNIE, every other layer, untied": ernie(
        moe_layer_interval=2, moe_layer_start_index=0, tie_word_embeddings=False
    ),
    "ERNIE, last layer dense": ernie(moe_layer_start_index=0, moe_layer_end_index=1),
    "Granite, biases, tied": granite(attention_bias=True, tie_word_embeddings=True),
}


@pytest.mark.filterwarnings("ignore:Initializing zero-element")  # a shared expert of size 0
@pytest.mark.parametrize("name", COMPUTED)
def test_logits_equal_those_of_transformers(name: str, tmp_path: Path) -> None:
    hf_model = random_model(COMPUTED[name], tmp_path)
    loaded = load_model(str(tmp_path), dtype="float32", device="cpu", model_impl="native")
    requests = make_requests([1, 7, 33, 40], loaded.config.vocab_size)
    want = full_logits(hf_model, requests)
    assert largest_error(make_runner(loaded.model), requests, want, [5, 11, 3, 21]) <= 1e-4


REFUSED: dict[str, tuple[PreTrainedConfig, str]] = {
    "ERNIE, biases": (ernie(use_bias=True), "use_bias is true"),
    "GLM, groups of one expert": (
        glm(n_group=8, topk_group=4),
        "n_routed_experts is 8 and its n_group 8",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_computed_is_refused_by_name(name: str) -> None:
    config, reason = REFUSED[name]
    architecture = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config.model_type]
    with pytest.raises(UnsupportedModelError, match=reason):
        read_model_config({**config.to_dict(), "architectures": [architecture]})


def test_a_bias_of_ernies_output_layer_is_computed_by_transformers(tmp_path: Path) -> None:
    hf_model = random_model(ernie(use_bias=True), tmp_path)
    loaded = load_model(str(tmp_path), dtype="float32", device="cpu")
    assert not isinstance(loaded.model, DecoderModel)
    requests = make_requests([7, 33], loaded.config.vocab_size)
    want = full_logits(hf_model, requests)
    assert largest_error(make_runner(loaded.model), requests, want, [40]) <= 1e-4


def test_ernies_router_keeps_the_digits_that_are_stored(tmp_path: Path) -> None:
    random_model(ernie(), tmp_path)
    config = read_model_config({**ernie().to_dict(), "architectures": ["Ernie4_5_MoeForCausalLM"]})
    weights = load_weights(tmp_path, config, torch.bfloat16, "cpu")
    network = weights.layers[1].feed_forward
    assert isinstance(network, ExpertWeights)
    stored = load_file(tmp_path / "model.safetensors")["model.layers.1.mlp.gate.weight"]
    assert stored.dtype == torch.float32
    assert torch.equal(network.router, stored)


def test_experts_of_layers_beyond_the_last_are_refused_after_dense_ones(tmp_path: Path) -> None:
    random_model(glm(), tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "num_hidden_layers": 2}))
    with pytest.raises(ModelLoadError, match=r"holds model\.layers\.2\..*fewer layers"):
        load_model(str(tmp_path), dtype="float32", device="cpu", model_impl="native")


def test_a_sparse_step_of_0_is_refused_by_name(tmp_path: Path) -> None:
    random_model(qwen2(), tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "decoder_sparse_step": 0}))
    with pytest.raises(ModelLoadError, match="decoder_sparse_step is 0, but must be an integer"):
        load_model(str(tmp_path), dtype="float32", device="cpu")
