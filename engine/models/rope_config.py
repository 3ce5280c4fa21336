"""Reads rotary embeddings from Hugging Face configurations, and refuses unsupported ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from batchmill.engine.errors import UnsupportedModelError

from .model_config import RopeConfig

#: The scalings that the native decoder computes. "dynamic" changes nothing up to
#: max_position_embeddings. "longrope" is computed up to its training context: beyond it, all angles
#: of a sequence would change while it grows.
ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "llama3", "longrope")


def read_rope(config: Mapping[str, Any], layer_type: str | None = None) -> RopeConfig:
    """Read the rotary embedding of a layer type, in the format of transformers 5 or an older one.

    Args:
        config: A complete Hugging Face configuration.
        layer_type: "full_attention" or "sliding_attention" if these have different rotations;
            None if all layers have the same.

    Raises:
        UnsupportedModelError: the scaling is not computed here.
        KeyError: a required value is missing.
    """
    values = config.get("rope_parameters")
    if values is None:
        values = {"rope_theta": config["rope_theta"], **(config.get("rope_scaling") or {})}
    if layer_type is not None:
        values = values[layer_type]
    rope_type = values.get("rope_type", values.get("type", "default"))
    if rope_type not in ROPE_TYPES:
        raise UnsupportedModelError(
            f"its RoPE scaling is {rope_type!r}; only {', '.join(ROPE_TYPES)} are supported"
        )
    common = {
        "theta": float(values["rope_theta"]),
        "rope_type": rope_type,
        "partial_rotary_factor": float(values.get("partial_rotary_factor") or 1.0),
        "grid_sections": tuple(map(int, values.get("mrope_section") or ())),
        "interleaves_grid": bool(values.get("mrope_interleaved", False)),
    }
    if rope_type == "linear":
        return RopeConfig(**common, factor=float(values["factor"]))
    if rope_type == "llama3":
        return RopeConfig(
            **common,
            factor=float(values["factor"]),
            low_freq_factor=float(values["low_freq_factor"]),
            high_freq_factor=float(values["high_freq_factor"]),
            original_max_position_embeddings=_original_length(config, values),
        )
    if rope_type == "yarn":
        return _yarn(config, values, common)
    if rope_type == "longrope":
        return _longrope(config, values, common)
    return RopeConfig(**common)


def longest_exact_length(config: Mapping[str, Any]) -> int:
    """Return the length up to which a sequence's angles do not depend on its length, tokens."""
    limit = int(config["max_position_embeddings"])
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    by_layer_type = [values for values in rope.values() if isinstance(values, Mapping)]
    for values in by_layer_type or [rope]:
        if values.get("rope_type", values.get("type")) == "longrope":
            limit = min(limit, _original_length(config, values))
    return limit


def _yarn(
    config: Mapping[str, Any], values: Mapping[str, Any], common: Mapping[str, Any]
) -> RopeConfig:
    original_length = _original_length(config, values)
    factor = values["factor"]
    if factor is None:
        factor = int(config["max_position_embeddings"]) / original_length
    attention_factor = values.get("attention_factor")
    if attention_factor is None:
        mscale, mscale_all_dim = values.get("mscale"), values.get("mscale_all_dim")
        if mscale and mscale_all_dim:
            attention_factor = _magnitude(factor, mscale) / _magnitude(factor, mscale_all_dim)
        else:
            attention_factor = _magnitude(factor, 1.0)
    return RopeConfig(
        **common,
        factor=float(factor),
        original_max_position_embeddings=original_length,
        beta_fast=float(values.get("beta_fast") or 32),
        beta_slow=float(values.get("beta_slow") or 1),
        truncate=bool(values.get("truncate", True)),
        attention_factor=float(attention_factor),
    )


def _magnitude(factor: float, scale: float) -> float:
    """Return by how much yarn sharpens attention over a context `factor` times as long."""
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0


def _longrope(
    config: Mapping[str, Any], values: Mapping[str, Any], common: Mapping[str, Any]
) -> RopeConfig:
    original_length = _original_length(config, values)
    factor = values.get("factor")
    if factor is None:
        factor = int(config["max_position_embeddings"]) / original_length
    attention_factor = values.get("attention_factor")
    if attention_factor is None:
        attention_factor = 1.0
        if factor > 1:
            attention_factor = math.sqrt(1 + math.log(factor) / math.log(original_length))
    return RopeConfig(
        **common,
        original_max_position_embeddings=original_length,
        short_factors=tuple(map(float, values["short_factor"])),
        attention_factor=float(attention_factor),
    )


def _original_length(config: Mapping[str, Any], values: Mapping[str, Any]) -> int:
    return int(
        config.get("original_max_position_embeddings")
        or values.get("original_max_position_embeddings")
        or config["max_position_embeddings"]
    )
