"""Compares a stored output layer with the embedding to which config.json ties it."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from batchmill.engine.errors import ModelLoadError
from batchmill.engine.models.model_config import ModelConfig
from batchmill.engine.models.weight_files import stored_names

from .stored_names import EMBEDDING, HEAD, own_names

#: Rows that are compared at a time, so that memory stays constant.
_NUM_ROWS = 4096

_log = logging.getLogger(__name__)


def untied_if_stored(folder: Path, config: ModelConfig) -> ModelConfig:
    """Return the configuration with an output layer of its own, if another one is stored.

    Fine-tuning may train both matrices and leave `tie_word_embeddings` in config.json. Then
    transformers uses both, and so do we.

    Raises:
        ModelLoadError: the files cannot be read.
    """
    if not config.tie_word_embeddings or _is_copy(folder):
        return config
    _log.warning(
        "config.json in %s ties the output layer to the embedding, but the weights hold another "
        "output layer, which is used",
        folder,
    )
    return replace(config, tie_word_embeddings=False)


def _is_copy(folder: Path) -> bool:
    """Whether the stored output layer equals the embedding, or none is stored."""
    places = stored_names(folder)
    names = {own: name for name, own in own_names(places, is_tied=True).items()}
    if EMBEDDING not in names or HEAD not in names:
        return True  # if both are missing, reading the weights says so
    embedding_name, head_name = names[EMBEDDING], names[HEAD]
    try:
        with (
            safe_open(places[embedding_name], framework="pt", device="cpu") as embedding_file,
            safe_open(places[head_name], framework="pt", device="cpu") as head_file,
        ):
            embedding = embedding_file.get_slice(embedding_name)
            head = head_file.get_slice(head_name)
            shape = embedding.get_shape()
            return shape == head.get_shape() and all(
                torch.equal(embedding[row : row + _NUM_ROWS], head[row : row + _NUM_ROWS])
                for row in range(0, shape[0], _NUM_ROWS)
            )
    except (SafetensorError, OSError) as error:
        raise ModelLoadError(
            f"the weights in {folder} cannot be read ({error}): download or convert them again"
        ) from error
