"""Short hashes that identify a model without reading all of its gigabytes."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import torch

from batchmill.engine.models.weight_files import weight_files
from batchmill.kernels.ops.sample import SAMPLER_VERSION

#: Bytes read at the start of a file; holds a safetensors header of a few thousand tensors.
_HEAD_BYTES = 1024 * 1024
#: Number of pieces read from the rest, evenly spread, and the bytes of each.
_NUM_PIECES = 64
_PIECE_BYTES = 4096
#: Files that decide how text becomes tokens and messages become text.
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
)


def sampled_hash(path: Path) -> str:
    """Hash a file's size, its first MiB and pieces spread over the rest.

    Two files that differ only between the pieces look alike; weights of different trainings or
    conversions differ everywhere.

    Returns:
        40 hex digits.
    """
    digest = hashlib.blake2b(digest_size=20)
    size = path.stat().st_size
    digest.update(str(size).encode())
    with path.open("rb") as file:
        digest.update(file.read(_HEAD_BYTES))
        for piece in range(_NUM_PIECES):
            file.seek(piece * max(size - _PIECE_BYTES, 0) // _NUM_PIECES)
            digest.update(file.read(_PIECE_BYTES))
        file.seek(max(size - _PIECE_BYTES, 0), os.SEEK_SET)
        digest.update(file.read(_PIECE_BYTES))
    return digest.hexdigest()


def model_identity(folder: Path, computation: str, dtype: torch.dtype) -> str:
    """Hash everything that decides a model's tokens: files, computation, dtype and sampler.

    A generation may be resumed if and only if the identities are equal.

    Args:
        folder: The model's files.
        computation: A description of what is computed with the weights.
        dtype: Of weights and activations.

    Returns:
        16 hex digits.
    """
    digest = hashlib.blake2b(digest_size=8)
    parts = [computation, str(dtype), SAMPLER_VERSION]
    parts += [f"{path.name} {sampled_hash(path)}" for path in weight_files(folder)]
    for name in _TOKENIZER_FILES:
        path = folder / name
        if path.is_file():
            parts.append(f"{name} {hashlib.blake2b(path.read_bytes()).hexdigest()}")
    digest.update("\n".join(parts).encode())
    return digest.hexdigest()
