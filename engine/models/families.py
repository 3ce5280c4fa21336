"""The model families of the native decoder: how each names its configuration and its weights.

A family is one entry of `FAMILIES`. Its peculiarities become fields of `ModelConfig`, which the
decoder reads when it is built; no other file knows the name of a family.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from batchmill.engine.errors import ModelLoadError, UnsupportedModelError

from . import llama_like, mixtures, output_normed
from .family import Family, HfConfig, WeightNames, activation, head_dim_of
from .model_config import ModelConfig
from .rope_config import longest_exact_length

#: Ends of the names of architectures with an output layer, and with a classification head.
_GENERATES, _CLASSIFIES = "ForCausalLM", "ForSequenceClassification"


def read_model_config(config: HfConfig) -> ModelConfig:
    """Read a complete Hugging Face configuration, `PreTrainedConfig.to_dict()`.

    Raises:
        UnsupportedModelError: the architecture or one of its features is not computed natively.
        ModelLoadError: a value that every such model has is missing.
    """
    architecture = native_architecture(config)
    if architecture is None:
        raise UnsupportedModelError(
            f"the model's architecture is {architecture_name(config)}, but the native decoder "
            f"computes only {', '.join(FAMILIES)}: set model_impl to 'auto' or 'transformers'"
        )
    family = FAMILIES[family_name(architecture)]
    _refuse_bidirectional(config, architecture)
    try:
        features = {
            "architecture": architecture,
            **_common(config),
            **_outputs(config, architecture),
            **family.features(config),
        }
        if "activation" not in features:
            features["activation"] = activation(config, "hidden_act")
        if not any(layer.sparse for layer in features["layers"]):
            features["experts"] = None
        read = ModelConfig(**features)
    except KeyError as error:
        raise ModelLoadError(
            f"the config.json of this {architecture} lacks {error.args[0]!r}: download the "
            "model again"
        ) from error
    except UnsupportedModelError as error:
        raise UnsupportedModelError(f"this {architecture}: {error}") from error
    _refuse_partial_rotary(read, family)
    return read


def _refuse_partial_rotary(config: ModelConfig, family: Family) -> None:
    shares = {kind.rope.partial_rotary_factor for kind in config.attention_kinds} - {1.0}
    if shares and not family.partial_rotary:
        raise UnsupportedModelError(
            f"this {config.architecture} has partial_rotary_factor {min(shares)}; only 1 is "
            "supported"
        )


def native_architecture(config: HfConfig) -> str | None:
    """Return the native family that a configuration names, or None if there is none."""
    names = config.get("architectures") or ()
    return next((name for name in names if family_name(name) in FAMILIES), None)


def family_name(architecture: str) -> str:
    """Return the family of an architecture: the class that generates with the same layers.

    The others are the layers alone (`Qwen3Model`), which embed, and the layers with a
    classification head (`Qwen3ForSequenceClassification`).
    """
    stem = architecture.removesuffix(_CLASSIFIES)
    if stem == architecture and architecture.endswith("Model"):
        stem = architecture.removesuffix("Model")
    if stem == architecture or stem == "Gemma3":  # a Gemma3Model also sees images
        return architecture
    return f"{stem.removesuffix('Text')}{_GENERATES}"


def _outputs(config: HfConfig, architecture: str) -> dict[str, Any]:
    """Return the fields that say which outputs an architecture has."""
    classifies = architecture.endswith(_CLASSIFIES)
    return {
        "generates": architecture.endswith(_GENERATES),
        "num_labels": num_labels(config) if classifies else 0,
        "state_size": int(config["hidden_size"]),
    }


def num_labels(config: HfConfig) -> int:
    """Return the outputs of a classification head; `PreTrainedConfig` has two without a setting."""
    return len(config.get("id2label") or {}) or int(config.get("num_labels") or 2)


def _refuse_bidirectional(config: HfConfig, architecture: str) -> None:
    if config.get("is_causal") is False:
        raise UnsupportedModelError(
            f"this {architecture} has bidirectional attention (is_causal is false); the native "
            "decoder is causal"
        )


def architecture_name(config: HfConfig) -> str:
    """Return the architecture that a configuration names, for messages."""
    names = ", ".join(config.get("architectures") or ())
    return names or f"not set (model_type {config.get('model_type')!r})"


def _common(config: HfConfig) -> dict[str, Any]:
    """Read the fields that all families name alike."""
    num_heads, hidden_size = int(config["num_attention_heads"]), int(config["hidden_size"])
    head_dim = head_dim_of(config)
    return {
        "vocab_size": int(config["vocab_size"]),
        "hidden_size": hidden_size,
        "intermediate_size": int(config["intermediate_size"]),
        "num_layers": int(config["num_hidden_layers"]),
        "num_heads": num_heads,
        "num_kv_heads": int(config.get("num_key_value_heads") or num_heads),
        "head_dim": head_dim,
        "max_position_embeddings": longest_exact_length(config),
        "rms_norm_eps": float(config["rms_norm_eps"]),
        "tie_word_embeddings": bool(config.get("tie_word_embeddings")),
        "attention_scale": head_dim**-0.5,
    }


#: Of layers without norms before their networks.
_POST_NORMED = WeightNames(
    attention_output_norm="post_attention_layernorm",
    feed_forward_output_norm="post_feedforward_layernorm",
)

#: By Hugging Face class name.
FAMILIES: Mapping[str, Family] = {
    "LlamaForCausalLM": Family(llama_like.llama),
    "MistralForCausalLM": Family(llama_like.mistral),
    "MinistralForCausalLM": Family(llama_like.ministral),
    "SeedOssForCausalLM": Family(llama_like.seed_oss),
    "SmolLM3ForCausalLM": Family(llama_like.smollm3),
    "CwmForCausalLM": Family(llama_like.cwm),
    "Ministral3ForCausalLM": Family(llama_like.ministral3),
    "Ernie4_5ForCausalLM": Family(llama_like.ernie4_5),
    "HunYuanDenseV1ForCausalLM": Family(
        llama_like.hunyuan_dense,
        WeightNames(qk_norms=("self_attn.query_layernorm", "self_attn.key_layernorm")),
    ),
    "GraniteForCausalLM": Family(llama_like.granite),
    "Qwen2ForCausalLM": Family(llama_like.qwen2),
    "Qwen3ForCausalLM": Family(llama_like.qwen3),
    "Qwen3MoeForCausalLM": Family(mixtures.qwen3_moe),
    "Qwen2MoeForCausalLM": Family(mixtures.qwen2_moe, WeightNames(shared="mlp.shared_expert")),
    "Glm4MoeForCausalLM": Family(mixtures.glm4_moe, partial_rotary=True),
    "Ernie4_5_MoeForCausalLM": Family(
        mixtures.ernie4_5_moe,
        WeightNames(correction="mlp.moe_statics.e_score_correction_bias", correction_is_row=True),
    ),
    "GraniteMoeForCausalLM": Family(
        mixtures.granite_moe,
        WeightNames(
            mixture="block_sparse_moe",
            router="router.layer",
            stacked_experts=("input_linear", "output_linear"),
        ),
    ),
    "MixtralForCausalLM": Family(
        mixtures.mixtral, WeightNames(mixture="block_sparse_moe", expert=("w1", "w3", "w2"))
    ),
    "GptOssForCausalLM": Family(mixtures.gpt_oss, WeightNames(router="router", joins_experts=True)),
    "GemmaForCausalLM": Family(output_normed.gemma),
    "Gemma3ForCausalLM": Family(
        output_normed.gemma3,
        WeightNames(
            post_attention_norm="pre_feedforward_layernorm",
            attention_output_norm="post_attention_layernorm",
            feed_forward_output_norm="post_feedforward_layernorm",
        ),
    ),
    "Glm4ForCausalLM": Family(
        output_normed.glm4,
        WeightNames(
            attention_output_norm="post_self_attn_layernorm",
            feed_forward_output_norm="post_mlp_layernorm",
            gate_up=("mlp.gate_up_proj",),
        ),
        partial_rotary=True,
    ),
    "Olmo2ForCausalLM": Family(output_normed.olmo2, _POST_NORMED),
    "Olmo3ForCausalLM": Family(output_normed.olmo3, _POST_NORMED),
    "Exaone4ForCausalLM": Family(output_normed.exaone4, _POST_NORMED),
    "Phi3ForCausalLM": Family(
        llama_like.phi3,
        WeightNames(qkv=("self_attn.qkv_proj",), gate_up=("mlp.gate_up_proj",)),
        partial_rotary=True,
    ),
}
