"""Reads the configurations of families that have mixtures of experts."""

from __future__ import annotations

from typing import Any

from .family import HfConfig, layers, same_window, windows_by_type
from .model_config import ExpertsConfig


def qwen3_moe(config: HfConfig) -> dict[str, Any]:
    """Read Qwen3-MoE: normalised heads, some layers dense."""
    dense_layers = frozenset(config.get("mlp_only_layers") or ())
    step, bias = int(config["decoder_sparse_step"]), bool(config.get("attention_bias"))
    num_experts = int(config.get("num_local_experts") or config["num_experts"])

    def sparse(index: int) -> bool:
        return index not in dense_layers and (index + 1) % step == 0

    return {
        "layers": layers(config, same_window(config, config.get("sliding_window")), sparse),
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


def mixtral(config: HfConfig) -> dict[str, Any]:
    """Read Mixtral: all layers are mixtures."""
    windows = same_window(config, config.get("sliding_window"))
    return {
        "layers": layers(config, windows, lambda index: True),
        "experts": ExpertsConfig(
            num_experts=int(config["num_local_experts"]),
            num_experts_per_token=int(config["num_experts_per_tok"]),
            intermediate_size=int(config["intermediate_size"]),
            normalise_weights=True,
        ),
    }


def gpt_oss(config: HfConfig) -> dict[str, Any]:
    """Read gpt-oss: sinks, windows in every other layer, biases everywhere, clamped gates."""
    bias = bool(config["attention_bias"])
    return {
        "layers": layers(config, windows_by_type(config), lambda index: True),
        "qkv_bias": bias,
        "output_bias": bias,
        "attention_sinks": True,
        "activation": "clamped_swiglu",
        "gate_alpha": float(config["swiglu_alpha"]),
        "gate_limit": float(config["swiglu_limit"]),
        "experts": ExpertsConfig(
            num_experts=int(config["num_local_experts"]),
            num_experts_per_token=int(config["num_experts_per_tok"]),
            intermediate_size=int(config["intermediate_size"]),
            normalise_weights=True,
            biases=True,
        ),
    }
