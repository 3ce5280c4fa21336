"""Loads a model: its weights, configuration and tokenizer, and the tokens that end an output."""

from __future__ import annotations

import ctypes
import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig

from batchmill.engine.encoders.config import encoder_family
from batchmill.engine.encoders.loading import load_encoder
from batchmill.engine.errors import ModelLoadError, UnsupportedModelError
from batchmill.engine.media.families import MediaFamily, media_family
from batchmill.engine.media.model import MediaModel, MediaSource
from batchmill.engine.memory.device_memory import (
    check_weights_fit,
    dtype_name,
    free_memory_bytes,
    make_current,
)
from batchmill.engine.model_shape import ModelShape
from batchmill.engine.models.decoder import DecoderModel
from batchmill.engine.models.families import (
    architecture_name,
    native_architecture,
    read_model_config,
)
from batchmill.engine.models.feed_forward import LinearFactory
from batchmill.engine.models.fp8_weights import (
    check_fp8_model,
    fp8_loading_bytes,
    fp8_remedy_bytes,
    layer_bytes,
)
from batchmill.engine.models.model import Model
from batchmill.engine.models.model_config import ModelConfig
from batchmill.engine.models.model_length import check_max_model_len
from batchmill.engine.models.score_head import ScoreHead
from batchmill.engine.models.weights import DecoderWeights, weights_bytes
from batchmill.engine.text.tokenizer import Tokenizer
from batchmill.kernels.ops.fp8_linear import FP8_VERSION
from batchmill.kernels.ops.int8_linear import INT8_VERSION

from .config_check import brief, check_config_file, check_rope_types
from .end_tokens import read_eos_token_ids
from .fingerprint import model_identity
from .generation_config import sampling_defaults
from .load_options import LoadOptions
from .model_source import DEMO_SAMPLING, model_folder
from .pooling_files import PoolingDefaults, longest_text, pooling_defaults
from .quantized.formats import quantization_settings, read_scheme, scheme_identity
from .quantized.scheme import Scheme
from .tied_head import untied_if_stored
from .weight_loading import load_weights

_HOST = torch.device("cpu")

#: Part of a quantized model's identity: raised when its arithmetic changes.
_QUANTIZATION_VERSIONS = {"int8": INT8_VERSION, "fp8": FP8_VERSION}

#: What a value of the right type raises that no model can have.
_BROKEN_VALUE = (
    *(ArithmeticError, AttributeError, LookupError, TypeError, ValueError),
    ctypes.ArgumentError,
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """Everything that an engine needs of a model."""

    #: Computes logits.
    model: Model
    #: Its sizes, as the cache and the scheduler see them.
    config: ModelShape
    tokenizer: Tokenizer
    #: Stands for weights, tokenizer, dtype and sampler: a generation resumes only if it is equal.
    identity: str
    #: Tokens that end an output.
    eos_token_ids: frozenset[int]
    #: Sampling controls that its makers recommend, and their values.
    sampling_defaults: Mapping[str, Any] = field(default_factory=dict)
    #: How its makers pool.
    pooling: PoolingDefaults = field(default_factory=PoolingDefaults)
    #: Its classification head; None if it has none.
    score_head: ScoreHead | None = None
    #: Its part for pictures or sounds; None if it takes text only.
    media: MediaModel | None = None


def load_model(
    model: str,
    *,
    dtype: str = "auto",
    device: str = "auto",
    quantization: str | None = None,
    model_impl: str = "auto",
    max_model_len: int | None = None,
    linear: LinearFactory | None = None,
) -> LoadedModel:
    """Load a model; download or convert it first if necessary.

    Args:
        model: "demo", a folder, a GGUF file or a hub id.
        dtype: Number format of weights, activations and KV cache: bfloat16, float16, float32, or
            "auto", which `EngineConfig.dtype` describes.
        device: "auto" (a GPU if there is one), "cpu", "cuda" or "cuda:<index>".
        quantization: Format of the weights: "int8" on a CPU, "fp8" on a GPU; None is `dtype`.
        model_impl: "native" (our decoder), "transformers" (its model over our cache) or "auto"
            (native if our decoder knows the model).
        max_model_len: Longest sequence to compute, tokens; a model that was made for less is
            refused before its weights are read. None checks nothing.
        linear: Makes the native decoder's matrix products, see `DecoderModel`.

    Raises:
        ConfigError: an argument is invalid, the model was made for less than `max_model_len`, or
            the weights do not fit into memory.
        ModelLoadError: the model cannot be found or read.
        UnsupportedModelError: the model has features that are not computed here.
    """
    started_at_s = time.monotonic()
    options = LoadOptions.checked(
        dtype=dtype,
        device=device,
        quantization=quantization,
        model_impl=model_impl,
        max_model_len=max_model_len,
        linear=linear,
    )
    folder = model_folder(model, max_model_len)
    try:
        loaded = _load_folder(folder, options)
    except _BROKEN_VALUE as error:
        raise ModelLoadError(
            f"{folder} cannot be loaded ({brief(error)}): a value in its config.json does not suit "
            "the model, so correct it, or download the model again"
        ) from error
    if model == "demo":
        defaults = {**DEMO_SAMPLING, **loaded.sampling_defaults}
        loaded = replace(loaded, sampling_defaults=defaults)
    _log_loaded(model, loaded, options, time.monotonic() - started_at_s)
    return loaded


def _load_folder(folder: Path, options: LoadOptions) -> LoadedModel:
    make_current(options.device)
    hf_config = _read_hf_config(folder)
    tokenizer = Tokenizer.from_folder(folder)
    if encoder_family(hf_config.to_dict()) is not None:
        return _load_encoder(folder, hf_config, tokenizer, options)
    values = hf_config.to_dict()
    family = None if options.model_impl == "transformers" else media_family(values)
    if family is not None:
        values = family.decoder_values(values)
    model, computation = _load_computation(folder, values, hf_config, options)
    media = None
    if family is not None and isinstance(model, DecoderModel):
        media = _load_media(family, folder, hf_config, tokenizer, options)
        computation += f" media {media.settings}"
    return LoadedModel(
        model=model,
        config=model.config,
        tokenizer=tokenizer,
        identity=model_identity(folder, computation, options.dtype),
        eos_token_ids=read_eos_token_ids(folder, values, tokenizer, model.config.vocab_size),
        sampling_defaults=sampling_defaults(folder),
        pooling=pooling_defaults(folder),
        score_head=_score_head(model, hf_config),
        media=media,
    )


def _load_media(
    family: MediaFamily,
    folder: Path,
    hf_config: PreTrainedConfig,
    tokenizer: Tokenizer,
    options: LoadOptions,
) -> MediaModel:
    token_id = getattr(hf_config, family.placeholder_field)
    (placeholder,) = tokenizer.convert_ids_to_tokens([token_id])
    source = MediaSource(folder, hf_config, placeholder, options.dtype, options.device)
    return family.load(source)


def _load_encoder(
    folder: Path, hf_config: PreTrainedConfig, tokenizer: Tokenizer, options: LoadOptions
) -> LoadedModel:
    if options.quantization is not None:
        raise UnsupportedModelError(
            f"an encoder is not computed with {options.quantization} weights here: leave "
            "quantization out"
        )
    values = hf_config.to_dict()
    model, head = load_encoder(folder, values, options.dtype, options.device)
    longest = min(model.config.max_position_embeddings, longest_text(folder) or 2**31)
    config = replace(model.config, max_position_embeddings=longest)
    return LoadedModel(
        model=model,
        config=config,
        tokenizer=tokenizer,
        identity=model_identity(folder, f"encoder {config!r}", options.dtype),
        eos_token_ids=frozenset(),
        pooling=pooling_defaults(folder, pooling="mean"),
        score_head=head,
    )


def _score_head(model: Model, hf_config: PreTrainedConfig) -> ScoreHead | None:
    if not isinstance(model, DecoderModel) or model.score_weight is None:
        return None
    return ScoreHead.of(model.score_weight, hf_config.to_dict())


def _log_loaded(model: str, loaded: LoadedModel, options: LoadOptions, elapsed_s: float) -> None:
    is_native = isinstance(loaded.model, DecoderModel)
    _log.info(
        "loaded %s (%s, computed by %s, %s%s, identity %s) on %s in %.1f s",
        model,
        loaded.config.architecture,
        "the native decoder" if is_native else "transformers",
        dtype_name(options.dtype),
        "" if options.quantization is None else f" with {options.quantization} weights",
        loaded.identity,
        options.device,
        elapsed_s,
    )
    if loaded.sampling_defaults:
        _log.info(
            "its makers recommend to sample with %s",
            ", ".join(f"{name} {value}" for name, value in loaded.sampling_defaults.items()),
        )


def _load_computation(
    folder: Path, values: dict[str, Any], hf_config: PreTrainedConfig, options: LoadOptions
) -> tuple[Model, str]:
    """Load the model that computes logits.

    Args:
        folder: Its files.
        values: The configuration of its decoder.
        hf_config: The configuration of all of it.
        options: How to load it.

    Returns:
        The model, and a description of its computation: all that decides its tokens besides its
        files.
    """
    stored_as = quantization_settings(folder, values)
    scheme = None if stored_as is None else read_scheme(stored_as)
    if scheme is not None:
        _log.info("the weights are stored in %s, and are unpacked", scheme.name)
    native_config = _native_config(options.model_impl, values)
    if native_config is not None:
        native_config = untied_if_stored(folder, native_config, scheme)
        computation = _describe_computation(native_config, options.quantization)
        if stored_as is not None:
            computation += scheme_identity(stored_as)
        return _load_decoder(folder, native_config, options, scheme), computation
    if scheme is not None:
        raise UnsupportedModelError(
            f"this {architecture_name(values)} is computed by transformers, but weights in "
            f"{scheme.name} are unpacked only for the native decoder: use the model's weights in "
            "bfloat16, float16 or float32"
        )
    if options.quantization is not None:
        raise UnsupportedModelError(
            f"a {architecture_name(values)} is computed by transformers, which does not compute "
            f"{options.quantization} weights here: leave quantization out"
        )
    # Imported here because it imports torch's compiler: seconds that native models do not need.
    from batchmill.engine.models_hf.loading import load_transformers_model

    model = load_transformers_model(
        folder, hf_config, options.dtype, options.device, options.max_model_len
    )
    return model, f"transformers {json.dumps(values, sort_keys=True, default=str)}"


def _load_decoder(
    folder: Path, config: ModelConfig, options: LoadOptions, scheme: Scheme | None
) -> DecoderModel:
    if options.max_model_len is not None:
        check_max_model_len(options.max_model_len, config.max_position_embeddings)
    weights = _read_weights(
        folder, config, options.dtype, options.device, options.quantization, scheme
    )
    return DecoderModel(config, weights, linear=options.linear, quantization=options.quantization)


def _describe_computation(config: ModelConfig, quantization: str | None) -> str:
    """Return a text of all that decides a native model's tokens besides its files."""
    version = "" if quantization is None else f" {_QUANTIZATION_VERSIONS[quantization]}"
    return repr(config) + version


def _read_weights(
    folder: Path,
    config: ModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    quantization: str | None,
    scheme: Scheme | None = None,
) -> DecoderWeights:
    """Read weights in `dtype`; layers that become fp8 stay on the host until they are quantized."""
    free_bytes = free_memory_bytes(device)
    if quantization != "fp8":
        fp8_bytes = _fp8_bytes_on_gpu(config, dtype) if device.type == "cuda" else None
        check_weights_fit(weights_bytes(config, dtype), dtype, device, free_bytes, fp8_bytes)
        return load_weights(folder, config, dtype, device, scheme=scheme)
    check_fp8_model(config)
    check_weights_fit(fp8_loading_bytes(config, dtype), dtype, device, free_bytes)
    check_weights_fit(sum(layer_bytes(config, dtype)), dtype, _HOST, free_memory_bytes(_HOST))
    return load_weights(folder, config, dtype, device, layer_device=_HOST, scheme=scheme)


def _fp8_bytes_on_gpu(config: ModelConfig, dtype: torch.dtype) -> int | None:
    """Return the bytes that a GPU needs to load the model in fp8, or None if it cannot load it."""
    if fp8_remedy_bytes(config, dtype) is None:
        return None
    if sum(layer_bytes(config, dtype)) > free_memory_bytes(_HOST):
        return None
    return fp8_loading_bytes(config, dtype)


def _native_config(model_impl: str, values: dict[str, Any]) -> ModelConfig | None:
    """Return the native decoder's configuration, or None if transformers computes the model."""
    if model_impl == "transformers":
        return None
    if model_impl == "native":
        return read_model_config(values)
    if native_architecture(values) is None:
        return None
    try:
        return read_model_config(values)
    except UnsupportedModelError as error:
        _log.warning(
            "transformers computes this model, which is slower than the native decoder: %s", error
        )
        return None


def _read_hf_config(folder: Path) -> PreTrainedConfig:
    """Read the model's configuration, with the defaults of its class filled in."""
    check_config_file(folder)
    try:
        hf_config: PreTrainedConfig = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # each configuration class raises what it likes
        raise ModelLoadError(
            f"transformers cannot read {folder / 'config.json'} ({brief(error)}): correct it; it "
            "must have an architecture that transformers knows"
        ) from error
    check_rope_types(folder, getattr(hf_config, "rope_parameters", None))
    return hf_config
