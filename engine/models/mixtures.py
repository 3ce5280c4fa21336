"""Reads the configurations of families that have mixtures of experts."""

from __future__ import annotations

from typing import Any

from . import llama_like
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


def qwen2_moe(config: HfConfig) -> dict[str, Any]:
    """Read Qwen2-MoE: a gated network beside the experts, some layers dense."""
    dense_layers = frozenset(config.get("mlp_only_layers") or ())
    step = int(config["decoder_sparse_step"])

    def sparse(index: int) -> bool:
        return index not in dense_layers and (index + 1) % step == 0

    return {
        "layers": layers(config, windows_by_type(config), sparse),
        "qkv_bias": bool(config.get("qkv_bias", True)),
        "experts": ExpertsConfig(
            num_experts=int(config.get("num_local_experts") or config["num_experts"]),
            num_experts_per_token=int(config["num_experts_per_tok"]),
            intermediate_size=int(config["moe_intermediate_size"]),
            normalise_weights=bool(config["norm_topk_prob"]),
            shared_size=int(config["shared_expert_intermediate_size"]),
            gates_shared=True,
        ),
    }


def glm4_moe(config: HfConfig) -> dict[str, Any]:
    """Read GLM-4.5 and 4.6: corrected sigmoid scores, groups, a network beside the experts."""
    num_dense, inner = int(config["first_k_dense_replace"]), int(config["moe_intermediate_size"])
    return {
        "layers": layers(config, same_window(config, None), lambda index: index >= num_dense),
        "qk_norm": bool(config["use_qk_norm"]),
        "qkv_bias": bool(config["attention_bias"]),
        "experts": ExpertsConfig(
            num_experts=int(config["n_routed_experts"]),
            num_experts_per_token=int(config["num_experts_per_tok"]),
            intermediate_size=inner,
            normalise_weights=bool(config["norm_topk_prob"]),
            score="sigmoid",
            has_correction=True,
            num_groups=int(config["n_group"]),
            num_groups_per_token=int(config["topk_group"]),
            least_sum=1e-20,
            share_factor=float(config["routed_scaling_factor"]),
            shared_size=inner * int(config["n_shared_experts"]),
        ),
    }


def ernie4_5_moe(config: HfConfig) -> dict[str, Any]:
    """Read ERNIE 4.5 with experts: corrected shares, some layers dense."""
    first, last = int(config["moe_layer_start_index"]), int(config["moe_layer_end_index"])
    step, inner = int(config["moe_layer_interval"]), int(config["moe_intermediate_size"])

    def sparse(index: int) -> bool:
        return first <= index <= last and (index + 1) % step == 0

    return {
        **llama_like.ernie4_5(config),
        "layers": layers(config, same_window(config, None), sparse),
        "experts": ExpertsConfig(
            num_experts=int(config["moe_num_experts"]),
            num_experts_per_token=int(config["moe_k"]),
            intermediate_size=inner,
            normalise_weights=True,
            has_correction=True,
            least_sum=float(config["moe_norm_min"]),
            shared_size=inner * int(config["moe_num_shared_experts"]),
        ),
    }


def granite_moe(config: HfConfig) -> dict[str, Any]:
    """Read Granite with experts: Granite's factors, and all layers are mixtures."""
    return {
        **llama_like.granite(config),
        "layers": layers(config, same_window(config, None), lambda index: True),
        "experts": ExpertsConfig(
            num_experts=int(config["num_local_experts"]),
            num_experts_per_token=int(config["num_experts_per_tok"]),
            intermediate_size=int(config["intermediate_size"]),
            normalise_weights=True,
        ),
    }
