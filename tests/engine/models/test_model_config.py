"""Reading Hugging Face configurations, and refusing features that would be computed wrongly."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import (
    Gemma3TextConfig,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from batchmill.engine.errors import ModelLoadError, UnsupportedModelError
from batchmill.engine.models.families import read_model_config
from batchmill.engine.models.model_config import AttentionConfig, RopeConfig

GEMMA3: dict[str, Any] = {"architectures": ["Gemma3ForCausalLM"]}


def llama(**values: Any) -> dict[str, Any]:
    return LlamaConfig(architectures=["LlamaForCausalLM"], **values).to_dict()


def test_defaults_that_a_config_file_leaves_out_are_filled_in() -> None:
    config = read_model_config(llama(hidden_size=64, num_attention_heads=4))
    assert config.head_dim == 16
    assert config.num_kv_heads == 4
    assert config.attention_kinds == (AttentionConfig(RopeConfig(10000.0)),)
    assert config.num_layers == len(config.layers) == 32
    assert not config.tie_word_embeddings
    assert not config.qk_norm


@pytest.mark.parametrize(
    ("values", "biases"),
    [
        (llama(attention_bias=True), (True, True)),
        (llama(), (False, False)),
        (Qwen2Config(architectures=["Qwen2ForCausalLM"]).to_dict(), (True, False)),
        (Qwen3Config(architectures=["Qwen3ForCausalLM"]).to_dict(), (False, False)),
        (MistralConfig(architectures=["MistralForCausalLM"]).to_dict(), (False, False)),
    ],
)
def test_biases_follow_the_architecture(values: dict[str, Any], biases: tuple[bool, bool]) -> None:
    config = read_model_config(values)
    assert (config.qkv_bias, config.output_bias) == biases


def test_the_older_format_of_rope_is_read() -> None:
    values = llama()
    del values["rope_parameters"]
    values |= {"rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}
    (attention,) = read_model_config(values).attention_kinds
    assert attention.rope == RopeConfig(5e5, "linear", factor=2.0)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        (GPT2Config(architectures=["GPT2LMHeadModel"]).to_dict(), "GPT2LMHeadModel"),
        (LlamaConfig().to_dict(), "model_type 'llama'"),
        (llama(hidden_act="gelu"), "hidden_act is 'gelu'"),
        (
            {**llama(), "rope_parameters": {"rope_type": "proportional", "rope_theta": 1e4}},
            "RoPE scaling is 'proportional'; only default, linear",
        ),
        (
            {**Gemma3TextConfig(**GEMMA3).to_dict(), "attn_logit_softcapping": 30.0},
            "attn_logit_softcapping is 30",
        ),
        (
            Gemma3TextConfig(**GEMMA3, use_bidirectional_attention=True).to_dict(),
            "bidirectional attention",
        ),
        (
            {
                **Qwen2Config(architectures=["Qwen2ForCausalLM"]).to_dict(),
                "layer_types": ["full_attention", "linear_attention"],
            },
            "'linear_attention' layers",
        ),
        (
            {
                **MistralConfig(architectures=["MistralForCausalLM"]).to_dict(),
                "layer_types": ["full_attention", "sliding_attention"] * 16,
            },
            "mixed attention layers",
        ),
        (
            {**llama(), "rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}},
            r"partial_rotary_factor 0\.5",
        ),
    ],
)
def test_an_unsupported_feature_is_refused_by_name(values: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedModelError, match=named):
        read_model_config(values)


def test_later_features_change_the_identity_of_the_models_that_have_them_only() -> None:
    plain = repr(read_model_config(llama()))
    assert plain.startswith("ModelConfig(architecture='LlamaForCausalLM', vocab_size=32000")
    assert plain.endswith("embedding_scale=1.0, logit_softcap=None, experts=None)")
    values = GraniteConfig(architectures=["GraniteForCausalLM"], residual_multiplier=0.5).to_dict()
    assert repr(read_model_config(values)).endswith("experts=None, residual_scale=0.5)")


def test_a_missing_value_is_named() -> None:
    values = llama()
    del values["rms_norm_eps"]
    with pytest.raises(ModelLoadError, match="'rms_norm_eps'"):
        read_model_config(values)
