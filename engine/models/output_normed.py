"""Reads the configurations of Gemma, and of families that normalise outputs of their networks."""

from __future__ import annotations

from typing import Any

from batchmill.engine.errors import UnsupportedModelError

from .family import (
    UNROTATED,
    HfConfig,
    activation,
    layers,
    layers_by_type,
    same_window,
    windows_by_type,
)
from .model_config import AttentionConfig, LayerConfig
from .rope_config import read_rope


def gemma(config: HfConfig) -> dict[str, Any]:
    """Read Gemma: norms stored as differences from 1, scaled embeddings."""
    if config.get("use_bidirectional_attention"):
        raise UnsupportedModelError("it has bidirectional attention; only causal is supported")
    bias = bool(config.get("attention_bias"))
    return {
        "layers": layers(config, same_window(config, None)),
        "qkv_bias": bias,
        "output_bias": bias,
        "norm_offset": True,
        "embedding_scale": float(config["hidden_size"]) ** 0.5,
    }


def gemma3(config: HfConfig) -> dict[str, Any]:
    """Read Gemma 3: Gemma with normalised outputs, and a rotation for each kind of layer."""
    if config.get("attn_logit_softcapping") is not None:
        raise UnsupportedModelError(
            f"its attn_logit_softcapping is {config['attn_logit_softcapping']}, which is not "
            "supported"
        )
    if config.get("use_bidirectional_attention"):
        raise UnsupportedModelError("it has bidirectional attention; only causal is supported")
    bias = bool(config.get("attention_bias"))
    return {
        "layers": layers_by_type(config),
        "attention_scale": float(config["query_pre_attn_scalar"]) ** -0.5,
        "qk_norm": True,
        "qkv_bias": bias,
        "output_bias": bias,
        "norm_offset": True,
        "output_norms": True,
        "embedding_scale": float(config["hidden_size"]) ** 0.5,
        "activation": activation(config, "hidden_activation"),
        "logit_softcap": config.get("final_logit_softcapping"),
    }


def glm4(config: HfConfig) -> dict[str, Any]:
    """Read GLM-4: norms before and after each network, half of each head rotated."""
    return {
        "layers": layers(config, same_window(config, None)),
        "qkv_bias": bool(config.get("attention_bias")),
        "output_norms": True,
        "interleaved_rope": True,
    }


def olmo2(config: HfConfig) -> dict[str, Any]:
    """Read OLMo 2: norms after each network instead of before it, and of all heads together."""
    return {**_post_normed(config), "layers": layers(config, same_window(config, None))}


def olmo3(config: HfConfig) -> dict[str, Any]:
    """Read OLMo 3: OLMo 2 with windows in some layers, and a rotation for each kind of layer."""
    return {**_post_normed(config), "layers": layers_by_type(config)}


def exaone4(config: HfConfig) -> dict[str, Any]:
    """Read EXAONE 4: norms after each network, and if there are windows, no rotation elsewhere."""
    rope = read_rope(config)
    rotates_all = config.get("sliding_window") is None
    return {
        "layers": tuple(
            LayerConfig(AttentionConfig(rope if rotates_all or window else UNROTATED, window))
            for window in windows_by_type(config)
        ),
        "qk_norm": True,
        "input_norms": False,
        "output_norms": True,
    }


def _post_normed(config: HfConfig) -> dict[str, Any]:
    bias = bool(config.get("attention_bias"))
    return {
        "qkv_bias": bias,
        "output_bias": bias,
        "qk_norm": True,
        "qk_norm_spans_heads": True,
        "input_norms": False,
        "output_norms": True,
    }
