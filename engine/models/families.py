"""The model families of the native decoder: how each names its configuration and its weights.

A family is one entry of `FAMILIES`. Its peculiarities become fields of `ModelConfig`, which the
decoder reads when it is built; no other file knows the name of a family.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from batchmill.engine.errors import ModelLoadError, UnsupportedModelError

from .model_config import (
    Activation,
    AttentionConfig,
    ExpertsConfig,
    LayerConfig,
    ModelConfig,
    RopeConfig,
)
from .rope_config import longest_exact_length, read_rope

#: Our names of activations, by Hugging Face's.
_ACTIVATIONS: dict[str, Activation] = {"silu": "silu", "gelu_pytorch_tanh": "gelu_tanh"}

#: Ends of the names of architectures with an output layer, and with a classification head.
_GENERATES, _CLASSIFIES = "ForCausalLM", "ForSequenceClassification"

HfConfig = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class WeightNames:
    """Hugging Face's names of a layer's tensors, without `model.layers.<n>.` and `.weight`."""

    #: The norm before the feed-forward network.
    post_attention_norm: str = "post_attention_layernorm"
    #: The norms of the outputs of attention and feed-forward network; empty if there are none.
    attention_output_norm: str = ""
    feed_forward_output_norm: str = ""
    #: Queries, keys and values: three tensors, or one.
    qkv: tuple[str, ...] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    #: Gate and up: two tensors, or one.
    gate_up: tuple[str, ...] = ("mlp.gate_proj", "mlp.up_proj")
    #: Of a mixture: the module that holds router and experts, and an expert's gate, up and down.
    mixture: str = "mlp"
    expert: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, slots=True)
class Family:
    """One architecture."""

    #: Reads the fields of `ModelConfig` that differ from `_common`.
    features: Callable[[HfConfig], dict[str, Any]]
    names: WeightNames = field(default_factory=WeightNames)
    #: Whether its models may rotate only a part of each head.
    partial_rotary: bool = False


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
            features["activation"] = _activation(config, "hidden_act")
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
    head_dim = int(config.get("head_dim") or hidden_size // num_heads)
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


def _activation(config: HfConfig, key: str) -> Activation:
    name = config.get(key)
    if name not in _ACTIVATIONS:
        raise UnsupportedModelError(
            f"its {key} is {name!r}; only {' and '.join(map(repr, _ACTIVATIONS))} are supported"
        )
    return _ACTIVATIONS[name]


def _layers(
    config: HfConfig,
    windows: list[int | None],
    sparse: Callable[[int], bool] = lambda index: False,
) -> tuple[LayerConfig, ...]:
    """Return layers that share one rotation."""
    rope = read_rope(config)
    return tuple(
        LayerConfig(AttentionConfig(rope, window), sparse(index))
        for index, window in enumerate(windows)
    )


def _same_window(config: HfConfig, window: int | None) -> list[int | None]:
    return [window] * int(config["num_hidden_layers"])


def _windows_by_type(config: HfConfig) -> list[int | None]:
    """Read the windows of layers that are "full_attention" or "sliding_attention"."""
    windows: list[int | None] = []
    for layer_type in config["layer_types"]:
        if layer_type not in ("full_attention", "sliding_attention"):
            raise UnsupportedModelError(
                f"it has {layer_type!r} layers; only 'full_attention' and 'sliding_attention' are "
                "supported"
            )
        windows.append(config["sliding_window"] if layer_type == "sliding_attention" else None)
    return windows


def _llama(config: HfConfig) -> dict[str, Any]:
    bias = bool(config.get("attention_bias"))
    return {
        "layers": _layers(config, _same_window(config, None)),
        "qkv_bias": bias,
        "output_bias": bias,
        "mlp_bias": bool(config.get("mlp_bias")),
    }


def _mistral(config: HfConfig) -> dict[str, Any]:
    layer_types = sorted(set(config.get("layer_types") or ()))
    if len(layer_types) > 1:
        raise UnsupportedModelError(
            f"it has mixed attention layers ({', '.join(layer_types)}), which its architecture "
            "ignores; only MinistralForCausalLM has them"
        )
    return {"layers": _layers(config, _same_window(config, config.get("sliding_window")))}


def _ministral(config: HfConfig) -> dict[str, Any]:
    return {"layers": _layers(config, _windows_by_type(config))}


def _cwm(config: HfConfig) -> dict[str, Any]:
    windows = _windows_by_type(config)
    return {"layers": _layers(config, windows), "mlp_bias": bool(config.get("mlp_bias"))}


def _seed_oss(config: HfConfig) -> dict[str, Any]:
    return {
        "layers": _layers(config, _same_window(config, None)),
        "qkv_bias": bool(config["attention_bias"]),
        "output_bias": bool(config["attention_out_bias"]),
        "mlp_bias": bool(config.get("mlp_bias")),
    }


def _smollm3(config: HfConfig) -> dict[str, Any]:
    bias = bool(config.get("attention_bias"))
    rope, unrotated = read_rope(config), RopeConfig(theta=1.0, rope_type="none")
    has_windows = config.get("use_sliding_window") and config.get("sliding_window") is not None
    windows = _windows_by_type(config) if has_windows else _same_window(config, None)
    return {
        "layers": tuple(
            LayerConfig(AttentionConfig(rope if is_rotated else unrotated, window))
            for is_rotated, window in zip(config["no_rope_layers"], windows, strict=True)
        ),
        "qkv_bias": bias,
        "output_bias": bias,
        "mlp_bias": bool(config.get("mlp_bias")),
    }


def _phi3(config: HfConfig) -> dict[str, Any]:
    return {"layers": _layers(config, _same_window(config, config.get("sliding_window")))}


def _qwen2(config: HfConfig) -> dict[str, Any]:
    return {"layers": _layers(config, _windows_by_type(config)), "qkv_bias": True}


def _qwen3(config: HfConfig) -> dict[str, Any]:
    bias = bool(config.get("attention_bias"))
    return {
        "layers": _layers(config, _windows_by_type(config)),
        "qk_norm": True,
        "qkv_bias": bias,
        "output_bias": bias,
    }


def _qwen3_moe(config: HfConfig) -> dict[str, Any]:
    dense_layers = frozenset(config.get("mlp_only_layers") or ())
    step, bias = int(config["decoder_sparse_step"]), bool(config.get("attention_bias"))
    num_experts = int(config.get("num_local_experts") or config["num_experts"])

    def sparse(index: int) -> bool:
        return index not in dense_layers and (index + 1) % step == 0

    return {
        "layers": _layers(config, _same_window(config, config.get("sliding_window")), sparse),
        "qk_norm": True,
        "qkv_bias": bias,
        "output_bias": bias,
        "experts": ExpertsConfig(
            num_experts=num_experts,
            num_experts_per_token=int(config["num_experts_per_tok"]),
            intermediate_size=int(config["moe_intermediate_size"]),
            normalise_weights=bool(config["norm_topk_prob"]),
        ),
    }


def _mixtral(config: HfConfig) -> dict[str, Any]:
    windows = _same_window(config, config.get("sliding_window"))
    return {
        "layers": _layers(config, windows, lambda index: True),
        "experts": ExpertsConfig(
            num_experts=int(config["num_local_experts"]),
            num_experts_per_token=int(config["num_experts_per_tok"]),
            intermediate_size=int(config["intermediate_size"]),
            normalise_weights=True,
        ),
    }


def _gemma(config: HfConfig) -> dict[str, Any]:
    if config.get("use_bidirectional_attention"):
        raise UnsupportedModelError("it has bidirectional attention; only causal is supported")
    bias = bool(config.get("attention_bias"))
    return {
        "layers": _layers(config, _same_window(config, None)),
        "qkv_bias": bias,
        "output_bias": bias,
        "norm_offset": True,
        "embedding_scale": float(config["hidden_size"]) ** 0.5,
    }


def _gemma3(config: HfConfig) -> dict[str, Any]:
    if config.get("attn_logit_softcapping") is not None:
        raise UnsupportedModelError(
            f"its attn_logit_softcapping is {config['attn_logit_softcapping']}, which is not "
            "supported"
        )
    if config.get("use_bidirectional_attention"):
        raise UnsupportedModelError("it has bidirectional attention; only causal is supported")
    bias = bool(config.get("attention_bias"))
    windows = _windows_by_type(config)
    layer_types = list(config["layer_types"])
    ropes = {layer_type: read_rope(config, layer_type) for layer_type in set(layer_types)}
    return {
        "layers": tuple(
            LayerConfig(AttentionConfig(ropes[layer_type], window))
            for layer_type, window in zip(layer_types, windows, strict=True)
        ),
        "attention_scale": float(config["query_pre_attn_scalar"]) ** -0.5,
        "qk_norm": True,
        "qkv_bias": bias,
        "output_bias": bias,
        "norm_offset": True,
        "output_norms": True,
        "embedding_scale": float(config["hidden_size"]) ** 0.5,
        "activation": _activation(config, "hidden_activation"),
        "logit_softcap": config.get("final_logit_softcapping"),
    }


#: By Hugging Face class name.
FAMILIES: Mapping[str, Family] = {
    "LlamaForCausalLM": Family(_llama),
    "MistralForCausalLM": Family(_mistral),
    "MinistralForCausalLM": Family(_ministral),
    "SeedOssForCausalLM": Family(_seed_oss),
    "SmolLM3ForCausalLM": Family(_smollm3),
    "CwmForCausalLM": Family(_cwm),
    "Qwen2ForCausalLM": Family(_qwen2),
    "Qwen3ForCausalLM": Family(_qwen3),
    "Qwen3MoeForCausalLM": Family(_qwen3_moe),
    "MixtralForCausalLM": Family(
        _mixtral, WeightNames(mixture="block_sparse_moe", expert=("w1", "w3", "w2"))
    ),
    "GemmaForCausalLM": Family(_gemma),
    "Gemma3ForCausalLM": Family(
        _gemma3,
        WeightNames(
            post_attention_norm="pre_feedforward_layernorm",
            attention_output_norm="post_attention_layernorm",
            feed_forward_output_norm="post_feedforward_layernorm",
        ),
    ),
    "Phi3ForCausalLM": Family(
        _phi3,
        WeightNames(qkv=("self_attn.qkv_proj",), gate_up=("mlp.gate_up_proj",)),
        partial_rotary=True,
    ),
}
