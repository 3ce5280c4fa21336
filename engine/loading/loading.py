"""Loads a model: its weights, configuration and tokenizer, and the tokens that end an output."""

from __future__ import annotations

import ctypes
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from batchmill.engine.encoders.config import encoder_family
from batchmill.engine.encoders.loading import load_encoder
from batchmill.engine.errors import ModelLoadError, UnsupportedModelError
from batchmill.engine.media.families import MediaFamily, media_family
from batchmill.engine.media.model import MediaModel, MediaSource
from batchmill.engine.memory.device_memory import (
    dtype_name,
    make_current,
)
from batchmill.engine.model_shape import ModelShape
from batchmill.engine.models.decoder import DecoderModel
from batchmill.engine.models.families import architecture_name
from batchmill.engine.models.feed_forward import LinearFactory
from batchmill.engine.models.kv_scales import KvScales
from batchmill.engine.models.model import Model
from batchmill.engine.models.score_head import ScoreHead
from batchmill.engine.models.split_layers import Ranks
from batchmill.engine.models.weight_files import stored_names
from batchmill.engine.text.tokenizer import Tokenizer

from .computation import load_computation, read_hf_config
from .config_check import brief
from .end_tokens import read_eos_token_ids
from .fingerprint import model_identity
from .generation_config import sampling_defaults
from .kv_scales import refuse_kv_scales
from .load_options import LoadOptions
from .model_source import DEMO_SAMPLING, model_folder
from .pooling_files import PoolingDefaults, longest_text, pooling_defaults

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
    #: Of an eight-bit KV cache, by its checkpoint; None if that has none.
    kv_scales: KvScales | None = None
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
    ranks: Ranks | None = None,
) -> LoadedModel:
    """Load a model; download or convert it first if necessary.

    Args:
        model: "demo", a folder, a GGUF file or a hub id.
        dtype: Number format of weights, activations and KV cache: bfloat16, float16, float32, or
            "auto", which `EngineConfig.dtype` describes.
        device: "auto" (a GPU if there is one), "cpu", "cuda" or "cuda:<index>".
        quantization: Format of the weights: "int8" or "int4" on a CPU, "fp8" on a GPU; None is
            `dtype`.
        model_impl: "native" (our decoder), "transformers" (its model over our cache) or "auto"
            (native if our decoder knows the model).
        max_model_len: Longest sequence to compute, tokens; a model that was made for less is
            refused before its weights are read. None checks nothing.
        linear: Makes the native decoder's matrix products, see `DecoderModel`.
        ranks: Those that compute the model together; loads the shard of this one. None loads all.

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
        ranks=ranks,
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
    hf_config = read_hf_config(folder)
    tokenizer = Tokenizer.from_folder(folder)
    if encoder_family(hf_config.to_dict()) is not None:
        options.refuse_ranks("an encoder")
        return _load_encoder(folder, hf_config, tokenizer, options)
    values = hf_config.to_dict()
    family = None if options.model_impl == "transformers" else media_family(values)
    if family is not None:
        options.refuse_ranks("one that takes media")
        values = family.decoder_values(values)
    model, computation = load_computation(folder, values, hf_config, options)
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
        kv_scales=_kv_scales(folder, model, values),
        media=media,
    )


def _kv_scales(folder: Path, model: Model, values: dict[str, Any]) -> KvScales | None:
    if isinstance(model, DecoderModel):
        return model.kv_scales
    return refuse_kv_scales(
        stored_names(folder), model.config.num_layers, architecture_name(values)
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
