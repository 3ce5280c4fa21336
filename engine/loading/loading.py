"""Loads a model: weights, configuration, tokenizer and what ends its texts."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig

from batchmill.engine.config import MODEL_IMPLS, QUANTIZATIONS
from batchmill.engine.errors import ConfigError, ModelLoadError, UnsupportedModelError
from batchmill.engine.memory.device_memory import check_weights_fit, free_memory_bytes, make_current
from batchmill.engine.model_shape import ModelShape
from batchmill.engine.models.decoder import DecoderModel
from batchmill.engine.models.families import (
    named_architecture,
    native_architecture,
    read_model_config,
)
from batchmill.engine.models.feed_forward import LinearFactory
from batchmill.engine.models.fp8_weights import (
    check_fp8_device,
    check_fp8_model,
    fp8_loading_bytes,
    fp8_remedy_bytes,
    layer_bytes,
)
from batchmill.engine.models.model import Model
from batchmill.engine.models.model_config import ModelConfig
from batchmill.engine.models.model_length import check_max_model_len
from batchmill.engine.models.weights import DecoderWeights, weights_bytes
from batchmill.engine.text.tokenizer import Tokenizer
from batchmill.kernels.cpu.library import default_library
from batchmill.kernels.errors import CppBuildError
from batchmill.kernels.ops.fp8_linear import FP8_VERSION
from batchmill.kernels.ops.int8_linear import INT8_VERSION

from .fingerprint import model_identity
from .model_source import model_folder
from .weight_loading import load_weights

_DTYPES = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
}

_HOST = torch.device("cpu")

#: What generations of quantized models are resumed by.
_VERSIONS = {"int8": INT8_VERSION, "fp8": FP8_VERSION}

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """Everything that an engine needs of a model."""

    #: Computes logits.
    model: Model
    #: What it looks like from outside.
    config: ModelShape
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
    model_impl: str = "auto",
    max_model_len: int | None = None,
    linear: LinearFactory | None = None,
) -> LoadedModel:
    """Load a model, fetching or converting it first where that is needed.

    Args:
        model: "demo", a folder, a GGUF file or a hub id.
        dtype: Number format of weights, activations and KV cache: bfloat16, float16 or float32.
        device: "auto" (a GPU where there is one), "cpu", "cuda" or "cuda:<index>".
        quantization: "int8" quantizes the weights while they are laid out, for products on a CPU,
            and "fp8" for products on a GPU; None keeps them in `dtype`.
        model_impl: Who computes the model: "native" is our decoder, "transformers" is its model
            over our cache, and "auto" is native where that computes the model.
        max_model_len: Longest sequence that it is to compute, tokens; one that it was not made for
            is refused before the weights are read. None asks for no length.
        linear: Makes the native decoder's matrix multiplications, see `DecoderModel`.

    Raises:
        ConfigError: dtype, device, quantization or model_impl is not one that there is, or they
            do not go together, max_model_len is longer than the model was made for, or the weights
            do not fit into the device's memory.
        ModelLoadError: the model cannot be found or read.
        UnsupportedModelError: it has features that are not computed here.
    """
    _check_formats(dtype, quantization, model_impl)
    started_at_s = time.monotonic()
    torch_device = resolve_device(device)
    make_current(torch_device)
    if quantization is not None:
        _check_quantizable(quantization, torch_device, dtype, model_impl)
    folder = model_folder(model, max_model_len)
    hf_config = _hf_config(folder)
    tokenizer = Tokenizer.from_folder(folder)
    computes, decisive = _load(
        folder,
        hf_config,
        _DTYPES[dtype],
        torch_device,
        quantization=quantization,
        model_impl=model_impl,
        max_model_len=max_model_len,
        linear=linear,
    )
    loaded = LoadedModel(
        model=computes,
        config=computes.config,
        tokenizer=tokenizer,
        identity=model_identity(folder, decisive, _DTYPES[dtype]),
        eos_token_ids=_eos_token_ids(folder, hf_config.to_dict(), tokenizer),
    )
    _log.info(
        "loaded %s (%s, computed by %s, %s%s, identity %s) on %s in %.1f s",
        model,
        computes.config.architecture,
        "the native decoder" if isinstance(computes, DecoderModel) else "transformers",
        dtype,
        "" if quantization is None else f" with {quantization} weights",
        loaded.identity,
        torch_device,
        time.monotonic() - started_at_s,
    )
    return loaded


def _load(
    folder: Path,
    hf_config: PreTrainedConfig,
    dtype: torch.dtype,
    device: torch.device,
    *,
    quantization: str | None,
    model_impl: str,
    max_model_len: int | None,
    linear: LinearFactory | None,
) -> tuple[Model, str]:
    """The model, and what decides its tokens besides its files."""
    values = hf_config.to_dict()
    native_config = _native_config(model_impl, values)
    if native_config is not None:
        if max_model_len is not None:
            check_max_model_len(max_model_len, native_config.max_position_embeddings)
        weights = _read_weights(folder, native_config, dtype, device, quantization)
        decoder = DecoderModel(native_config, weights, linear=linear, quantization=quantization)
        return decoder, _decides(native_config, quantization)
    if quantization is not None:
        raise UnsupportedModelError(
            f"a {named_architecture(values)} goes through transformers, where its weights cannot "
            f"be {quantization}: leave quantization out"
        )
    # Here, because it brings torch's compiler along: seconds that native models do without.
    from batchmill.engine.models_hf.loading import load_transformers_model

    decisive = f"transformers {json.dumps(values, sort_keys=True, default=str)}"
    loaded = load_transformers_model(folder, hf_config, dtype, device, max_model_len)
    return loaded, decisive


def _decides(config: ModelConfig, quantization: str | None) -> str:
    """What decides a native model's tokens besides its files."""
    return repr(config) + ("" if quantization is None else f" {_VERSIONS[quantization]}")


def _read_weights(
    folder: Path,
    config: ModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    quantization: str | None,
) -> DecoderWeights:
    """Weights in `dtype`; layers that become fp8 wait on the host, and go to the GPU one by one."""
    free_bytes = free_memory_bytes(device)
    if quantization != "fp8":
        fp8_bytes = _fp8_remedy_bytes(config, dtype) if device.type == "cuda" else None
        check_weights_fit(weights_bytes(config, dtype), dtype, device, free_bytes, fp8_bytes)
        return load_weights(folder, config, dtype, device)
    check_fp8_model(config)
    check_weights_fit(fp8_loading_bytes(config, dtype), dtype, device, free_bytes)
    check_weights_fit(sum(layer_bytes(config, dtype)), dtype, _HOST, free_memory_bytes(_HOST))
    return load_weights(folder, config, dtype, device, layer_device=_HOST)


def _fp8_remedy_bytes(config: ModelConfig, dtype: torch.dtype) -> int | None:
    """What a GPU needs to load the model in fp8; None where that or the host would refuse it."""
    if fp8_remedy_bytes(config, dtype) is None:
        return None
    if sum(layer_bytes(config, dtype)) > free_memory_bytes(_HOST):
        return None
    return fp8_loading_bytes(config, dtype)


def _native_config(model_impl: str, values: dict[str, Any]) -> ModelConfig | None:
    """What the native decoder computes, or None where the model goes through transformers."""
    if model_impl == "transformers":
        return None
    if model_impl == "native":
        return read_model_config(values)
    if native_architecture(values) is None:
        return None
    try:
        return read_model_config(values)
    except UnsupportedModelError as error:
        _log.warning("through transformers, which is slower, because natively: %s", error)
        return None


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


def _check_formats(dtype: str, quantization: str | None, model_impl: str) -> None:
    if dtype not in _DTYPES:
        raise ConfigError(f"dtype is {dtype!r}; choose one of {', '.join(_DTYPES)}")
    if quantization is not None and quantization not in QUANTIZATIONS:
        raise ConfigError(
            f"quantization is {quantization!r}; choose {' or '.join(QUANTIZATIONS)}, or leave "
            "it out"
        )
    if model_impl not in MODEL_IMPLS:
        raise ConfigError(f"model_impl is {model_impl!r}; choose one of {', '.join(MODEL_IMPLS)}")


def _check_quantizable(
    quantization: str, device: torch.device, dtype: str, model_impl: str
) -> None:
    if quantization == "fp8":
        check_fp8_device(device, dtype)
    elif device.type != "cpu":
        raise ConfigError(
            f"quantization is {quantization!r}, which is computed on a CPU only, and the device is "
            f"{device}: set device to 'cpu', set quantization to 'fp8', or leave it out"
        )
    if model_impl == "transformers":
        raise ConfigError(
            f"quantization is {quantization!r}, which only the native decoder computes, and "
            "model_impl is 'transformers': use 'auto' or 'native', or leave quantization out"
        )
    if quantization == "int8":
        _check_cpp_library()


def _check_cpp_library() -> None:
    try:
        default_library()
    except CppBuildError as error:
        raise ConfigError(
            "quantization is 'int8', which needs the C++ kernels, and they cannot be had: "
            f"{error}; or leave quantization out"
        ) from error


def _hf_config(folder: Path) -> PreTrainedConfig:
    """The model's configuration with its class's defaults filled in."""
    try:
        hf_config: PreTrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise ModelLoadError(
            f"no model configuration can be read from {folder} ({type(error).__name__}): it must "
            "hold a config.json of an architecture that transformers knows"
        ) from error
    return hf_config


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
