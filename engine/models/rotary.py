"""Rotation angles of positions, including the context extensions that models use."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .model_config import AttentionConfig, RopeConfig


def inverse_frequencies(rope: RopeConfig, head_dim: int) -> Tensor:
    """Compute the angle per position of each rotated pair, [rotary_dim / 2] float32.

    Source: RoFormer, Su et al. 2021; linear scaling: Chen et al. 2023, "Position Interpolation";
    llama3: The Llama 3 Herd of Models, 2024, as in its reference code; yarn: Peng et al. 2023;
    longrope: Ding et al. 2024.
    """
    rotary_dim = int(head_dim * rope.partial_rotary_factor)
    exponents = torch.arange(0, rotary_dim, 2, dtype=torch.int64).float() / rotary_dim
    wavelengths = rope.theta**exponents
    if rope.rope_type == "longrope":
        return 1.0 / (torch.tensor(rope.short_factors) * wavelengths)
    if rope.rope_type == "none":
        return torch.zeros_like(wavelengths)
    frequencies = 1.0 / wavelengths
    if rope.rope_type == "linear":
        return frequencies / rope.factor
    if rope.rope_type == "llama3":
        return _stretch_long_waves(frequencies, rope)
    if rope.rope_type == "yarn":
        return _interpolate_by_parts(frequencies, rope, rotary_dim)
    return frequencies


def cos_sin(
    positions: Tensor,
    frequencies: Tensor,
    attention_factor: float = 1.0,
    axes: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute cosines and sines for `apply_rope`.

    Args:
        positions: [num_tokens] int64, or [3, num_tokens] with `axes`.
        frequencies: [rotary_dim / 2] float32.
        attention_factor: Factor on both.
        axes: [rotary_dim / 2] int64, the row of `positions` by which each pair turns.

    Returns:
        Cosines and sines, each [num_tokens, rotary_dim / 2] float32.
    """
    if positions.dim() == 1:
        turns = positions[:, None].float()
    else:
        assert axes is not None, "positions on several axes need the axis of each pair"
        turns = positions.float().T.contiguous().index_select(1, axes)
    angles = turns * frequencies
    if attention_factor == 1.0:
        return angles.cos(), angles.sin()
    return angles.cos() * attention_factor, angles.sin() * attention_factor


def query_growth(positions: Tensor, kind: AttentionConfig) -> Tensor:
    """Return the factor on each token's queries, [num_tokens] float32.

    Source: the temperature of attention in Llama 4, as in transformers' Ministral 3.
    """
    contexts = positions // kind.rope.original_max_position_embeddings
    return 1.0 + kind.query_growth * torch.log1p(contexts.float())


def axis_of_pairs(rope: RopeConfig, num_pairs: int) -> Tensor:
    """Return the axis by which each pair turns, [num_pairs] int64: 0 time, 1 row, 2 column.

    Raises:
        ValueError: the sections do not cover all pairs.

    Source: Wang et al. 2024, "Qwen2-VL", section 2.1; interleaved as in Bai et al. 2025,
    "Qwen3-VL Technical Report".
    """
    if not rope.interleaves_grid:
        axes = torch.arange(3).repeat_interleave(torch.tensor(rope.grid_sections))
        if len(axes) != num_pairs:
            raise ValueError(f"mrope_section has {len(axes)} pairs in all, a head has {num_pairs}")
        return axes
    pairs = torch.arange(num_pairs)
    ends = torch.tensor(rope.grid_sections)[pairs % 3] * 3
    return torch.where(pairs < ends, pairs % 3, 0)


def _stretch_long_waves(frequencies: Tensor, rope: RopeConfig) -> Tensor:
    """Divide low frequencies by `factor`: waves that the training context did not contain whole.

    Waves that fit `high_freq_factor` times into the context stay, those that fit less than
    `low_freq_factor` times are divided, and those between in proportion.
    """
    waves_in_context = rope.original_max_position_embeddings * frequencies / (2 * math.pi)
    kept = (waves_in_context - rope.low_freq_factor) / (
        rope.high_freq_factor - rope.low_freq_factor
    )
    kept = kept.clamp(0, 1)
    return kept * frequencies + (1 - kept) * frequencies / rope.factor


def _interpolate_by_parts(frequencies: Tensor, rope: RopeConfig, rotary_dim: int) -> Tensor:
    """Divide by `factor` the frequencies of dimensions that turn rarely over the training context.

    Dimensions that turn more than `beta_fast` times stay, those that turn less than `beta_slow`
    times are divided, with a ramp over the dimensions between.
    """
    first = _dimension_that_turns(rope.beta_fast, rope, rotary_dim)
    last = _dimension_that_turns(rope.beta_slow, rope, rotary_dim)
    if rope.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, rotary_dim - 1)
    if first == last:
        last += 0.001  # a step instead of a ramp
    ramp = (torch.arange(rotary_dim // 2, dtype=torch.float32) - first) / (last - first)
    slowed = ramp.clamp(0, 1)
    return (1 - slowed) * frequencies + slowed * frequencies / rope.factor


def _dimension_that_turns(num_turns: float, rope: RopeConfig, rotary_dim: int) -> float:
    """Return the fractional index of the pair that turns this often over the training context."""
    length = rope.original_max_position_embeddings
    turns = math.log(length / (num_turns * 2 * math.pi))
    return rotary_dim * turns / (2 * math.log(rope.theta))
