"""Compares a stored output layer with the embedding to which config.json ties it."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from batchmill.engine.errors import ModelLoadError
from batchmill.engine.models.model_config import ModelConfig

from .quantized.checkpoint import Checkpoint
from .quantized.scheme import Scheme
from .stored_names import EMBEDDING, HEAD, own_names

#: Rows that are compared at a time, so that memory stays constant.
_NUM_ROWS = 4096

_log = logging.getLogger(__name__)


def untied_if_stored(
    folder: Path, config: ModelConfig, scheme: Scheme | None = None
) -> ModelConfig:
    """Return the configuration with an output layer of its own, if another one is stored.

    Fine-tuning may train both matrices and leave `tie_word_embeddings` in config.json. Then
    transformers uses both, and so do we. A head in a quantized format differs from the embedding.

    Args:
        folder: The model's files.
        config: Its configuration.
        scheme: The quantized format that weights are stored in; None if they are dense.

    Raises:
        ModelLoadError: the files cannot be read.
    """
    is_tied = config.generates and config.tie_word_embeddings
    if not is_tied or _is_copy(Checkpoint(folder, scheme)):
        return config
    _log.warning(
        "config.json in %s ties the output layer to the embedding, but the weights hold another "
        "output layer, which is used",
        folder,
    )
    return replace(config, tie_word_embeddings=False)


def _is_copy(checkpoint: Checkpoint) -> bool:
    """Whether the stored output layer equals the embedding, or none is stored."""
    places = checkpoint.names
    names = {own: name for name, own in own_names(places, is_tied=True).items()}
    if EMBEDDING not in names or HEAD not in names:
        return True  # if both are missing, reading the weights says so
    embedding_name, head_name = names[EMBEDDING], names[HEAD]
    if checkpoint.is_packed(embedding_name) or checkpoint.is_packed(head_name):
        return False
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
            f"the weights in {checkpoint.folder} cannot be read ({error}): download or convert "
            "them again"
        ) from error
