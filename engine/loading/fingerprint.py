"""The identity of a model: a short hash of everything that decides its tokens."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch

from batchmill.engine.models.weight_files import weight_files
from batchmill.kernels.ops.sample import SAMPLER_VERSION

from .file_hash import file_hash

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
    parts += [f"{path.name} {file_hash(path)}" for path in weight_files(folder)]
    for name in _TOKENIZER_FILES:
        path = folder / name
        if path.is_file():
            parts.append(f"{name} {hashlib.blake2b(path.read_bytes()).hexdigest()}")
    digest.update("\n".join(parts).encode())
    return digest.hexdigest()
