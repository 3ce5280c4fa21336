"""Reading Hugging Face configurations, and refusing what would be computed wrongly."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import GPT2Config, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from batchmill.engine.errors import ModelLoadError, UnsupportedModelError
from batchmill.engine.model_config import ModelConfig, RopeConfig


def llama(**values: Any) -> dict[str, Any]:
    return LlamaConfig(architectures=["LlamaForCausalLM"], **values).to_dict()


def test_defaults_that_a_config_file_leaves_out_are_filled_in() -> None:
    config = ModelConfig.from_hf(llama(hidden_size=64, num_attention_heads=4))
    assert config.head_dim == 16
    assert config.num_kv_heads == 4
    assert config.rope == RopeConfig(10000.0)
    assert not config.tie_word_embeddings
    assert not config.qk_norm
    assert config.sliding_window is None


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
    config = ModelConfig.from_hf(values)
    assert (config.qkv_bias, config.output_bias) == biases


def test_the_older_spelling_of_rope_is_read() -> None:
    values = llama()
    del values["rope_parameters"]
    values |= {"rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", "factor": 2.0}}
    assert ModelConfig.from_hf(values).rope == RopeConfig(5e5, "linear", factor=2.0)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        (GPT2Config(architectures=["GPT2LMHeadModel"]).to_dict(), "GPT2LMHeadModel"),
        (LlamaConfig().to_dict(), "model_type 'llama'"),
        (llama(hidden_act="gelu"), "hidden_act 'gelu'"),
        (
            llama(rope_scaling={"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}),
            "RoPE scaling 'yarn'",
        ),
        ({**llama(), "quantization_config": {"quant_method": "awq"}}, "quantized weights.*awq"),
        (
            Qwen2Config(
                architectures=["Qwen2ForCausalLM"], use_sliding_window=True, max_window_layers=2
            ).to_dict(),
            "full_attention, sliding_attention",
        ),
        (
            {**llama(), "rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}},
            r"partial_rotary_factor 0\.5",
        ),
    ],
)
def test_an_unsupported_feature_is_refused_by_name(values: dict[str, Any], named: str) -> None:
    with pytest.raises(UnsupportedModelError, match=named):
        ModelConfig.from_hf(values)


def test_a_missing_value_is_named() -> None:
    values = llama()
    del values["rms_norm_eps"]
    with pytest.raises(ModelLoadError, match="'rms_norm_eps'"):
        ModelConfig.from_hf(values)
