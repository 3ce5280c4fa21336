"""Reads the configurations of families whose layers are those of Llama with small changes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from batchmill.engine.errors import UnsupportedModelError

from .family import UNROTATED, HfConfig, head_dim_of, layers, same_window, windows_by_type
from .model_config import AttentionConfig, LayerConfig
from .rope_config import read_rope


def llama(config: HfConfig) -> dict[str, Any]:
    """Read Llama: biases by setting."""
    bias = bool(config.get("attention_bias"))
    return {
        "layers": layers(config, same_window(config, None)),
        "qkv_bias": bias,
        "output_bias": bias,
        "mlp_bias": bool(config.get("mlp_bias")),
    }


def mistral(config: HfConfig) -> dict[str, Any]:
    """Read Mistral: one window for all layers."""
    layer_types = sorted(set(config.get("layer_types") or ()))
    if len(layer_types) > 1:
        raise UnsupportedModelError(
            f"it has mixed attention layers ({', '.join(layer_types)}), which its architecture "
            "ignores; only MinistralForCausalLM has them"
        )
    return {"layers": layers(config, same_window(config, config.get("sliding_window")))}


def ministral(config: HfConfig) -> dict[str, Any]:
    """Read Ministral: windows in some layers."""
    return {"layers": layers(config, windows_by_type(config))}


def cwm(config: HfConfig) -> dict[str, Any]:
    """Read CWM: windows in some layers."""
    windows = windows_by_type(config)
    return {"layers": layers(config, windows), "mlp_bias": bool(config.get("mlp_bias"))}


def seed_oss(config: HfConfig) -> dict[str, Any]:
    """Read Seed-OSS: biases by setting."""
    return {
        "layers": layers(config, same_window(config, None)),
        "qkv_bias": bool(config["attention_bias"]),
        "output_bias": bool(config["attention_out_bias"]),
        "mlp_bias": bool(config.get("mlp_bias")),
    }


def smollm3(config: HfConfig) -> dict[str, Any]:
    """Read SmolLM3: some layers do not rotate."""
    bias = bool(config.get("attention_bias"))
    rope = read_rope(config)
    has_windows = config.get("use_sliding_window") and config.get("sliding_window") is not None
    windows = windows_by_type(config) if has_windows else same_window(config, None)
    return {
        "layers": tuple(
            LayerConfig(AttentionConfig(rope if is_rotated else UNROTATED, window))
            for is_rotated, window in zip(config["no_rope_layers"], windows, strict=True)
        ),
        "qkv_bias": bias,
        "output_bias": bias,
        "mlp_bias": bool(config.get("mlp_bias")),
    }


def phi3(config: HfConfig) -> dict[str, Any]:
    """Read Phi-3: one window for all layers."""
    return {"layers": layers(config, same_window(config, config.get("sliding_window")))}


def qwen2(config: HfConfig) -> dict[str, Any]:
    """Read Qwen2: biases of queries, keys and values."""
    return {"layers": layers(config, windows_by_type(config)), "qkv_bias": True}


def qwen3(config: HfConfig) -> dict[str, Any]:
    """Read Qwen3: normalised heads."""
    bias = bool(config.get("attention_bias"))
    return {
        "layers": layers(config, windows_by_type(config)),
        "qk_norm": True,
        "qkv_bias": bias,
        "output_bias": bias,
    }


def ministral3(config: HfConfig) -> dict[str, Any]:
    """Read Ministral 3: Mistral with queries that grow beyond the training context."""
    rope = read_rope(config)
    values = config["rope_parameters"]
    beta = float(values.get("llama_4_scaling_beta") or 0.0)
    if beta and not rope.original_max_position_embeddings:
        raise UnsupportedModelError(
            f"its llama_4_scaling_beta is {beta}, but its RoPE scaling has no "
            "original_max_position_embeddings"
        )
    attention = AttentionConfig(rope, config.get("sliding_window"), query_growth=beta)
    return {"layers": (LayerConfig(attention),) * int(config["num_hidden_layers"])}


def ernie4_5(config: HfConfig) -> dict[str, Any]:
    """Read ERNIE 4.5: rotated pairs are neighbours, and one setting is for all biases."""
    bias = bool(config.get("use_bias"))
    return {
        "layers": layers(config, same_window(config, None)),
        "qkv_bias": bias,
        "output_bias": bias,
        "mlp_bias": bias,
        "interleaved_rope": True,
    }


def hunyuan_dense(config: HfConfig) -> dict[str, Any]:
    """Read HunYuan: heads are normalised after they are rotated, with a wider base (`alpha`)."""
    rope, bias = read_rope(config), bool(config.get("attention_bias"))
    alpha = (config.get("rope_parameters") or {}).get("alpha")
    if rope.rope_type == "dynamic" and alpha:
        head_dim = head_dim_of(config)
        theta = rope.theta * float(alpha) ** (head_dim / (head_dim - 2))
        rope = replace(rope, theta=theta, rope_type="default")
    # The norms divide by any factor on cosines and sines again; they are computed before the
    # rotation here (see `HeadNorms`), where the factor would remain.
    rope = replace(rope, attention_factor=1.0)
    return {
        "layers": (LayerConfig(AttentionConfig(rope)),) * int(config["num_hidden_layers"]),
        "qkv_bias": bias,
        "output_bias": bias,
        "qk_norm": True,
        "qk_norm_after_rope": True,
    }


def granite(config: HfConfig) -> dict[str, Any]:
    """Read Granite: factors on embeddings, scores, outputs of networks and logits."""
    return {
        **llama(config),
        "embedding_scale": float(config["embedding_multiplier"]),
        "attention_scale": float(config["attention_multiplier"]),
        "residual_scale": float(config["residual_multiplier"]),
        "logit_divisor": float(config["logits_scaling"]),
    }
