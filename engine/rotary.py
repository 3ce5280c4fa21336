"""Rotation angles of positions, with the context extensions of the Llama family."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .model_config import RopeConfig


def inverse_frequencies(rope: RopeConfig, head_dim: int) -> Tensor:
    """Angle per position of each rotated pair, [head_dim / 2] float32.

    Source: RoFormer, Su et al. 2021; linear scaling: Chen et al. 2023, "Position Interpolation";
    llama3: The Llama 3 Herd of Models, 2024, as in its reference code.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    frequencies = 1.0 / (rope.theta**exponents)
    if rope.rope_type == "linear":
        return frequencies / rope.factor
    if rope.rope_type == "llama3":
        return _stretch_long_waves(frequencies, rope)
    return frequencies


def cos_sin(positions: Tensor, frequencies: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines for `apply_rope`.

    Args:
        positions: [num_tokens] int64.
        frequencies: [head_dim / 2] float32.

    Returns:
        Two of [num_tokens, head_dim / 2] float32.
    """
    angles = positions[:, None].float() * frequencies
    return angles.cos(), angles.sin()


def _stretch_long_waves(frequencies: Tensor, rope: RopeConfig) -> Tensor:
    """Slow down by `factor` the waves longer than the training context saw whole.

    Waves that fit `high_freq_factor` times into the context stay, those that fit less than
    `low_freq_factor` times are slowed down in full, those between in proportion.
    """
    waves_in_context = rope.original_max_position_embeddings * frequencies / (2 * math.pi)
    kept = (waves_in_context - rope.low_freq_factor) / (
        rope.high_freq_factor - rope.low_freq_factor
    )
    kept = kept.clamp(0, 1)
    return kept * frequencies + (1 - kept) * frequencies / rope.factor
