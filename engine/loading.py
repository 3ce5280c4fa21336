"""Loads a model: weights, configuration, tokenizer and what ends its texts."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from .decoder import DecoderModel, LinearFactory
from .errors import ConfigError, ModelLoadError
from .fingerprint import model_identity
from .model_config import ModelConfig
from .model_source import model_folder
from .tokenizer import Tokenizer
from .weights import load_weights

_DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
}

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """Everything that an engine needs of a model."""

    #: Computes logits.
    model: DecoderModel
    #: Its sizes and features.
    config: ModelConfig
    #: Its vocabulary.
    tokenizer: Tokenizer
    #: Names weights, tokenizer, dtype and sampler: generations resume only where it is equal.
    identity: str
    #: Tokens that end an output.
    eos_token_ids: frozenset[int]


def load_model(
    model: str,
    *,
    dtype: str = "bfloat16",
    device: str = "auto",
    quantization: str | None = None,
    linear: LinearFactory | None = None,
) -> LoadedModel:
    """Load a model, fetching or converting it first where that is needed.

    Args:
        model: "demo", a folder, a GGUF file or a hub id.
        dtype: Number format of weights, activations and KV cache: bfloat16, float16 or float32.
        device: "auto" (a GPU where there is one), "cpu", "cuda" or "cuda:<index>".
        quantization: Weight format; None keeps the weights in `dtype`.
        linear: Makes the matrix multiplications, see `DecoderModel`.

    Raises:
        ConfigError: dtype, device or quantization is not one that there is.
        ModelLoadError: the model cannot be found or read.
        UnsupportedModelError: it has features that are not computed here.
    """
    _check_formats(dtype, quantization)
    started_at_s = time.monotonic()
    torch_device = resolve_device(device)
    folder = model_folder(model)
    hf_config = _hf_config(folder)
    config = ModelConfig.from_hf(hf_config)
    tokenizer = Tokenizer.from_folder(folder)
    weights = load_weights(folder, config, _DTYPES[dtype], torch_device)
    loaded = LoadedModel(
        model=DecoderModel(config, weights, linear=linear),
        config=config,
        tokenizer=tokenizer,
        identity=model_identity(folder, config, _DTYPES[dtype]),
        eos_token_ids=_eos_token_ids(folder, hf_config, tokenizer),
    )
    _log.info(
        "loaded %s (%s, %s, identity %s) on %s in %.1f s",
        model,
        config.architecture,
        dtype,
        loaded.identity,
        torch_device,
        time.monotonic() - started_at_s,
    )
    return loaded


def resolve_device(device: str) -> torch.device:
    """The device that a configuration means.

    Raises:
        ConfigError: it is no device, or this machine does not have it.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(
            f"device is {device!r}; use 'auto', 'cpu', 'cuda' or 'cuda:<index>'"
        ) from error
    if resolved.type not in ("cpu", "cuda"):
        raise ConfigError(f"device is {device!r}; supported are CPUs and CUDA GPUs")
    if resolved.type == "cuda" and (resolved.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device is {device!r}, this machine has {torch.cuda.device_count()} CUDA GPUs that "
            "torch can use: use 'cpu' or 'auto'"
        )
    return resolved


def _check_formats(dtype: str, quantization: str | None) -> None:
    if dtype not in _DTYPES:
        raise ConfigError(f"dtype is {dtype!r}; choose one of {', '.join(_DTYPES)}")
    if quantization is not None:
        raise ConfigError(f"quantization is {quantization!r}; only None is supported")


def _hf_config(folder: Path) -> dict[str, Any]:
    """The model's configuration with its class's defaults filled in."""
    try:
        hf_config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ModelLoadError(
            f"no model configuration can be read from {folder} ({type(error).__name__}): it must "
            "hold a config.json of an architecture that transformers knows"
        ) from error
    values: dict[str, Any] = hf_config.to_dict()
    return values


def _eos_token_ids(folder: Path, hf_config: dict[str, Any], tokenizer: Tokenizer) -> frozenset[int]:
    """All tokens that end an output: chat models name some of them in one place only."""
    path = folder / "generation_config.json"
    generation_config = json.loads(path.read_text()) if path.is_file() else {}
    token_ids: set[int] = set()
    for named in (
        generation_config.get("eos_token_id"),
        hf_config.get("eos_token_id"),
        tokenizer.eos_token_id,
    ):
        token_ids.update(named if isinstance(named, list) else [] if named is None else [named])
    return frozenset(token_ids)
