"""Reads the scales of an eight-bit KV cache: a number for the keys of a layer, one for its values.

Source: `kv_cache_scheme` of compressed-tensors 0.20, and the names that vLLM reads.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError, safe_open
from torch import Tensor

from batchmill.engine.errors import ModelLoadError
from batchmill.engine.models.kv_scales import KvScales

#: A scale's layer, its module, and what it is; `kv_scale` is of keys and of values.
_NAME: Final = re.compile(
    r"(?:.+\.)?layers\.(\d+)\.self_attn\.(?:([kv])_proj\.|qkv_proj\.)?"
    r"(?:([kv]|kv)_scale|([kv])_zero_point|output_scale)"
)


def read_kv_scales(
    stored: Mapping[str, Path], num_layers: int, settings: Mapping[str, Any]
) -> KvScales | None:
    """Return the scales of a checkpoint; None if it has none.

    Args:
        stored: The file of each stored tensor.
        num_layers: Layers of the model.
        settings: Of its quantization; empty if it has none.

    Raises:
        ModelLoadError: a file cannot be read.
    """
    scheme = settings.get("kv_cache_scheme")
    scales: dict[str, dict[int, float]] = {"k": {}, "v": {}}
    for name, path in stored.items():
        found = _NAME.fullmatch(name)
        if found is None:
            continue
        layer, module, kinds, zero_of = found.groups()
        if zero_of is None and kinds is None and (scheme is None or module is None):
            continue  # of the outputs of a product
        tensor = _read(path, name).float()
        if zero_of is not None:
            if bool(tensor.any()):
                return KvScales(problem=f"they have zero points ({name})")
            continue
        value = float(tensor) if tensor.numel() == 1 else math.nan
        if not (math.isfinite(value) and value > 0):
            return KvScales(problem=f"{name} is not one number above 0 for its layer")
        for kind in kinds or module:
            scales[kind][int(layer)] = value
    if not any(scales.values()):
        return None
    problem = _problem_of(settings)
    layers = range(num_layers)
    missing = [layer for layer in layers if not all(layer in each for each in scales.values())]
    if missing and not problem:
        problem = f"layer {missing[0]} lacks them"
    if problem:
        return KvScales(problem=problem)
    keys, values = (tuple(each[layer] for layer in layers) for each in scales.values())
    return KvScales(keys, values)


def refuse_kv_scales(
    stored: Mapping[str, Path], num_layers: int, architecture: str
) -> KvScales | None:
    """Return the scales of a model that transformers computes: none, or why they are not used.

    Args:
        stored: The file of each stored tensor.
        num_layers: Layers of the model.
        architecture: Its name, for the message.

    Raises:
        ModelLoadError: a file cannot be read.
    """
    if read_kv_scales(stored, num_layers, {}) is None:
        return None
    problem = f"this {architecture} is computed by transformers, which does not use them here"
    return KvScales(problem=problem)


def _problem_of(settings: Mapping[str, Any]) -> str:
    """Return why a cache with these settings is not stored as ours is; empty if it is."""
    scheme = settings.get("kv_cache_scheme")
    if isinstance(scheme, Mapping) and (scheme.get("num_bits"), scheme.get("type")) != (8, "float"):
        return f"they are for {scheme.get('num_bits')} bits of type {scheme.get('type')!r}"
    algorithm = settings.get("kv_cache_quant_algo")
    return "" if algorithm in (None, "FP8") else f"they are for {algorithm!r}"


def _read(path: Path, name: str) -> Tensor:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            value: Tensor = file.get_tensor(name)
            return value
    except (SafetensorError, OSError) as error:
        raise ModelLoadError(
            f"{path} cannot be read ({error}): download or convert it again"
        ) from error
