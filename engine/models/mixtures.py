"""Reads the configurations of families that have mixtures of experts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from batchmill.engine.errors import UnsupportedModelError

from . import llama_like
from .family import HfConfig, layers, same_window, windows_by_type
from .model_config import ExpertsConfig


def qwen3_moe(config: HfConfig) -> dict[str, Any]:
    """Read Qwen3-MoE: normalised heads, some layers dense."""
    bias, windows = bool(config.get("attention_bias")), config.get("sliding_window")
    return {
        "layers": layers(config, same_window(config, windows), _sparse_by_step(config)),
        "qk_norm": True,
        "qkv_bias": bias,
        "output_bias": bias,
        "experts": ExpertsConfig(
            num_experts=_num_experts(config),
            num_experts_per_token=int(config["num_experts_per_tok"]),
            intermediate_size=int(config["moe_intermediate_size"]),
            normalise_weights=bool(config["norm_topk_prob"]),
        ),
    }


def _num_experts(config: HfConfig) -> int:
    """Return the experts of Qwen's mixtures, whose configurations have two names for them."""
    name = "num_experts" if config.get("num_local_experts") is None else "num_local_experts"
    return int(config[name])


def _sparse_by_step(config: HfConfig) -> Callable[[int], bool]:
    """Return which layers are mixtures in Qwen's models: every so many, but for those listed."""
    dense_layers = frozenset(config.get("mlp_only_layers") or ())
    step, num_experts = int(config["decoder_sparse_step"]), _num_experts(config)

    def sparse(index: int) -> bool:
        return num_experts > 0 and index not in dense_layers and (index + 1) % step == 0

    return sparse


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
    return {
        "layers": layers(config, windows_by_type(config), _sparse_by_step(config)),
        "qkv_bias": bool(config.get("qkv_bias", True)),
        "experts": ExpertsConfig(
            num_experts=_num_experts(config),
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
    num_experts, num_groups = int(config["n_routed_experts"]), int(config["n_group"])
    if num_experts < 2 * num_groups:
        raise UnsupportedModelError(
            f"its n_routed_experts is {num_experts} and its n_group {num_groups}, but groups are "
            "chosen by their best two experts, so that each must have two"
        )
    return {
        "layers": layers(config, same_window(config, None), lambda index: index >= num_dense),
        "qk_norm": bool(config["use_qk_norm"]),
        "qkv_bias": bool(config["attention_bias"]),
        "experts": ExpertsConfig(
            num_experts=num_experts,
            num_experts_per_token=int(config["num_experts_per_tok"]),
            intermediate_size=inner,
            normalise_weights=bool(config["norm_topk_prob"]),
            score="sigmoid",
            has_correction=True,
            num_groups=num_groups,
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

    if config.get("use_bias"):
        raise UnsupportedModelError(
            "its use_bias is true, which gives a bias to its output layer too; only false is "
            "supported"
        )
    return {
        **llama_like.ernie4_5(config),
        "layers": layers(config, same_window(config, None), sparse),
        "experts": ExpertsConfig(
            num_experts=int(config["moe_num_experts"]),
            num_experts_per_token=int(config["moe_k"]),
            intermediate_size=inner,
            normalise_weights=True,
            has_correction=True,
            keeps_router_float32=True,
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
