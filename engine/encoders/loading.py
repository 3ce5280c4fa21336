"""Loads an encoder: its weights, its head, and how its makers pool and cut texts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from batchmill.engine.memory.device_memory import check_weights_fit, free_memory_bytes
from batchmill.engine.models.score_head import ScoreHead

from .config import EncoderConfig, read_encoder_config
from .encoder import EncoderModel
from .weights import load_encoder_weights


def load_encoder(
    folder: Path, values: Mapping[str, Any], dtype: torch.dtype, device: torch.device
) -> tuple[EncoderModel, ScoreHead | None]:
    """Load an encoder from a Hugging Face folder, and its classification head if it has one.

    Args:
        folder: The model's files.
        values: Its configuration, `PreTrainedConfig.to_dict()`.
        dtype: Of weights and activations.
        device: Of the weights.

    Raises:
        ConfigError: the weights do not fit into memory.
        UnsupportedModelError: a feature is not computed here.
        ModelLoadError: the weights cannot be read.
    """
    config = read_encoder_config(values)
    num_bytes = _num_weights(config) * dtype.itemsize
    check_weights_fit(num_bytes, dtype, device, free_memory_bytes(device))
    weights = load_encoder_weights(folder, config, dtype, device)
    head = None
    if weights.head_output is not None:
        dense = weights.head_dense
        head = ScoreHead.of(
            weights.head_output.weight,
            values,
            bias=weights.head_output.bias,
            dense=None if dense is None else (dense.weight, dense.bias),
        )
    return EncoderModel(config, weights), head


def _num_weights(config: EncoderConfig) -> int:
    hidden, inner = config.hidden_size, config.intermediate_size
    per_layer = 4 * hidden * hidden + 2 * hidden * inner + 9 * hidden + inner
    rows = config.vocab_size + config.num_positions + config.num_token_types
    return config.num_hidden_layers * per_layer + rows * hidden
