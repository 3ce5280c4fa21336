"""Tiny models with random weights, at least one of every family, saved as Hugging Face folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer as BackendTokenizer
from tokenizers import models, pre_tokenizers
from transformers import (
    ArceeConfig,
    AutoModelForCausalLM,
    CwmConfig,
    Ernie4_5_MoeConfig,
    Ernie4_5Config,
    Exaone4Config,
    Gemma3TextConfig,
    GemmaConfig,
    Glm4Config,
    Glm4MoeConfig,
    GPT2Config,
    GPTNeoXConfig,
    GptOssConfig,
    GraniteConfig,
    GraniteMoeConfig,
    GraniteSWAConfig,
    HunYuanDenseV1Config,
    LlamaConfig,
    Ministral3Config,
    MinistralConfig,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    Olmo3Config,
    OPTConfig,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    SeedOssConfig,
    SmolLM3Config,
    Starcoder2Config,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCAB_SIZE = 211
#: Typed `Any` because the signatures of transformers' configurations lack some of the fields that
#: they accept, for example those of RoPE.
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 48,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}
_LINEAR: dict[str, Any] = {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}
_DYNAMIC: dict[str, Any] = {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}
_LLAMA3: dict[str, Any] = {
    "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
}
_YARN: dict[str, Any] = {
    "rope_scaling": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 64,
    }
}
_LONGROPE: dict[str, Any] = {
    "partial_rotary_factor": 0.75,
    "rope_scaling": {
        "rope_type": "longrope",
        "short_factor": [1.0 + index / 8 for index in range(3)],
        "long_factor": [2.0 + index for index in range(3)],
    },
}
_QWEN3_HEADS: dict[str, Any] = {"head_dim": 16}
_EXPERTS: dict[str, Any] = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 40}
_HALF_ROTATED: dict[str, Any] = {"head_dim": 16, "partial_rotary_factor": 0.5}
_FULL, _SLIDING = "full_attention", "sliding_attention"
_SIX_LAYERS = [_SLIDING, _SLIDING, _FULL, _SLIDING, _SLIDING, _FULL]

#: Models that the native decoder computes.
NATIVE: dict[str, PreTrainedConfig] = {
    "Llama": LlamaConfig(**SIZES),
    "Llama, every bias, llama3 RoPE, explicit head_dim": LlamaConfig(
        **SIZES,
        attention_bias=True,
        mlp_bias=True,
        head_dim=20,
        **_LLAMA3,
    ),
    "Llama, linear RoPE, tied": LlamaConfig(**SIZES, **_LINEAR, tie_word_embeddings=True),
    "Llama, yarn RoPE": LlamaConfig(**SIZES, **_YARN),
    "Llama, dynamic RoPE, one key head": LlamaConfig(
        **{**SIZES, "num_key_value_heads": 1}, **_DYNAMIC
    ),
    "Llama, one key head per head": LlamaConfig(**{**SIZES, "num_key_value_heads": 6}),
    "Mistral": MistralConfig(**SIZES, sliding_window=None),
    "Mistral, sliding window": MistralConfig(**SIZES, sliding_window=9),
    "Ministral, windows in some layers": MinistralConfig(
        **SIZES, head_dim=16, sliding_window=9, layer_types=[_SLIDING, _FULL, _SLIDING]
    ),
    "Seed-OSS, biases": SeedOssConfig(**SIZES, head_dim=16, attention_out_bias=True, mlp_bias=True),
    "SmolLM3, some layers without RoPE": SmolLM3Config(**SIZES, no_rope_layer_interval=2),
    "CWM, windows in some layers": CwmConfig(
        **SIZES, head_dim=16, sliding_window=9, layer_types=[_FULL, _SLIDING, _SLIDING], **_LLAMA3
    ),
    "Ministral 3, queries grow": Ministral3Config(
        **SIZES,
        head_dim=16,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 1e4,
            "factor": 16.0,
            "original_max_position_embeddings": 16,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "llama_4_scaling_beta": 0.5,
        },
    ),
    "ERNIE 4.5": Ernie4_5Config(**SIZES, head_dim=16),
    "ERNIE 4.5, biases": Ernie4_5Config(
        **SIZES, head_dim=16, use_bias=True, tie_word_embeddings=False
    ),
    "HunYuan dense": HunYuanDenseV1Config(**SIZES, head_dim=16),
    "HunYuan dense, wider base, biases": HunYuanDenseV1Config(
        **SIZES,
        head_dim=16,
        attention_bias=True,
        rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "alpha": 1000.0, "factor": 1.0},
    ),
    "Granite": GraniteConfig(
        **SIZES,
        embedding_multiplier=6.0,
        attention_multiplier=0.25,
        residual_multiplier=0.5,
        logits_scaling=2.0,
        attention_bias=True,
        mlp_bias=True,
    ),
    "Gemma": GemmaConfig(**SIZES, head_dim=16),
    "Qwen2, tied": Qwen2Config(**SIZES, tie_word_embeddings=True),
    "Qwen2, windows in some layers": Qwen2Config(
        **SIZES, use_sliding_window=True, sliding_window=9, max_window_layers=1
    ),
    "Qwen3": Qwen3Config(**SIZES, **_QWEN3_HEADS),
    "Qwen3-MoE": Qwen3MoeConfig(**SIZES, **_QWEN3_HEADS, **_EXPERTS, norm_topk_prob=True),
    "Qwen3-MoE, some layers dense, biases, shares not normalised": Qwen3MoeConfig(
        **SIZES,
        **_QWEN3_HEADS,
        **_EXPERTS,
        decoder_sparse_step=2,
        norm_topk_prob=False,
        attention_bias=True,
    ),
    "Qwen2-MoE, shared expert": Qwen2MoeConfig(
        **SIZES, **_EXPERTS, shared_expert_intermediate_size=40
    ),
    "GLM-4.5, first layer dense, groups of experts, shares scaled": Glm4MoeConfig(
        **SIZES,
        **_HALF_ROTATED,
        use_qk_norm=True,
        attention_bias=True,
        moe_intermediate_size=40,
        n_routed_experts=8,
        num_experts_per_tok=3,
        n_shared_experts=2,
        n_group=4,
        topk_group=2,
        routed_scaling_factor=1.5,
    ),
    "ERNIE 4.5 MoE, first layer dense": Ernie4_5_MoeConfig(
        **SIZES,
        moe_intermediate_size=40,
        moe_num_experts=6,
        moe_k=2,
        moe_num_shared_experts=2,
    ),
    "Granite MoE": GraniteMoeConfig(
        **SIZES,
        num_local_experts=6,
        num_experts_per_tok=2,
        embedding_multiplier=3.0,
        attention_multiplier=0.3,
        residual_multiplier=0.5,
        logits_scaling=2.0,
    ),
    "gpt-oss": GptOssConfig(
        **SIZES,
        head_dim=16,
        sliding_window=9,
        num_local_experts=5,
        num_experts_per_tok=2,
        swiglu_limit=1.5,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 150000.0,
            "factor": 4.0,
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "truncate": False,
            "original_max_position_embeddings": 64,
        },
    ),
    "Mixtral": MixtralConfig(**SIZES, num_local_experts=5, num_experts_per_tok=2),
    "Gemma 3 text": Gemma3TextConfig(
        **{**SIZES, "num_hidden_layers": 6},
        head_dim=16,
        query_pre_attn_scalar=24,
        sliding_window=9,
        layer_types=_SIX_LAYERS,
        rope_parameters={
            _FULL: {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            _SLIDING: {"rope_type": "default", "rope_theta": 1e4},
        },
    ),
    "Gemma 3 text, capped logits, biases, untied head": Gemma3TextConfig(
        **{**SIZES, "num_hidden_layers": 2},
        head_dim=16,
        query_pre_attn_scalar=16,
        layer_types=[_SLIDING, _FULL],
        sliding_window=16,
        final_logit_softcapping=2.0,
        attention_bias=True,
        tie_word_embeddings=False,
    ),
    "GLM-4": Glm4Config(**SIZES, head_dim=16),
    "OLMo 2": Olmo2Config(**SIZES),
    "OLMo 3": Olmo3Config(
        **{**SIZES, "num_hidden_layers": 4},
        sliding_window=9,
        attention_bias=True,
        rope_parameters={
            _FULL: {
                "rope_type": "yarn",
                "factor": 4.0,
                "rope_theta": 5e5,
                "original_max_position_embeddings": 64,
            },
            _SLIDING: {"rope_type": "default", "rope_theta": 5e5},
        },
    ),
    "EXAONE 4, windows and no rotation in some layers": Exaone4Config(
        **{**SIZES, "head_dim": 16}, sliding_window=9, layer_types=[_SLIDING, _FULL, _SLIDING]
    ),
    "Phi-3, sliding window": Phi3Config(**SIZES, sliding_window=9),
    "Phi-3, longrope, part of each head rotated": Phi3Config(
        **SIZES,
        original_max_position_embeddings=64,
        **_LONGROPE,
    ),
}
_GPT: dict[str, Any] = {"vocab_size": VOCAB_SIZE, "bos_token_id": 0, "eos_token_id": 1}
#: Models that only transformers computes.
OTHERS: dict[str, PreTrainedConfig] = {
    "GPT-2": GPT2Config(**_GPT, n_positions=256, n_embd=48, n_layer=3, n_head=6),
    "GPT-NeoX": GPTNeoXConfig(
        **_GPT,
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=6,
        intermediate_size=112,
        max_position_embeddings=256,
    ),
    "OPT": OPTConfig(
        **_GPT,
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=6,
        ffn_dim=112,
        max_position_embeddings=256,
        word_embed_proj_dim=48,
    ),
    "Llama, GELU activation": LlamaConfig(**SIZES, hidden_act="gelu"),
    "Arcee": ArceeConfig(**SIZES),
    "Granite with windows, sinks": GraniteSWAConfig(**SIZES, sliding_window=9),
    "Starcoder 2, sliding window": Starcoder2Config(
        **{key: value for key, value in SIZES.items() if key != "rms_norm_eps"}, sliding_window=9
    ),
}
ALL = NATIVE | OTHERS


def architecture_of(config: PreTrainedConfig) -> str:
    """Return the name of the Hugging Face class of a configuration."""
    return MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config.model_type]


def random_model(config: PreTrainedConfig, folder: Path) -> PreTrainedModel:
    """Save a model with random weights, biases and norms, and a tokenizer; return the model."""
    torch.manual_seed(5)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    # Norms that start at 0 are stored as differences from 1.
    centre = 0.0 if config.model_type.startswith("gemma") else 1.0
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(centre if "norm" in name or "ln_" in name else 0.0, 0.2)
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.normal_(0.0, 0.2)
    model.eval()
    model.save_pretrained(folder)
    save_tokenizer(folder)
    return model


def save_tokenizer(folder: Path) -> None:
    """Save a tokenizer with one word per token id."""
    words = ["<s>", "</s>", "<unk>", *(f"w{index}" for index in range(3, VOCAB_SIZE))]
    backend = BackendTokenizer(
        models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>")
    )
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)
