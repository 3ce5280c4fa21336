"""Steering vectors for small models, written as GGUF or safetensors."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file


def directions(
    layers: range, hidden: int, *, seed: int, size: float = 0.5
) -> dict[int, NDArray[np.float32]]:
    """Return random directions by layer."""
    generator = np.random.default_rng(seed)
    return {
        layer: (generator.standard_normal(hidden) * size).astype(np.float32) for layer in layers
    }


def write_safetensors(path: Path, vectors: Mapping[int, NDArray[np.floating[Any]]]) -> Path:
    """Write directions as safetensors."""
    save_file({f"direction.{layer}": each for layer, each in vectors.items()}, path)
    return path


def write_gguf(
    path: Path, vectors: dict[int, NDArray[np.float32]], architecture: str = "controlvector"
) -> Path:
    """Write directions as llama.cpp's tools and repeng do."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_string("controlvector.model_hint", "llama")
    writer.add_uint32("controlvector.layer_count", len(vectors))
    for layer, each in vectors.items():
        writer.add_tensor(f"direction.{layer}", each)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
