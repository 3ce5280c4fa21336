"""Loads what computes a model's logits: its configuration and its weights, without a tokenizer."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig

from batchmill.engine.errors import ModelLoadError, UnsupportedModelError
from batchmill.engine.memory.device_memory import (
    check_weights_fit,
    free_memory_bytes,
    make_current,
)
from batchmill.engine.models.decoder import DecoderModel
from batchmill.engine.models.families import (
    architecture_name,
    native_architecture,
    read_model_config,
)
from batchmill.engine.models.fp8_weights import (
    check_fp8_model,
    fp8_host_bytes,
    fp8_loading_bytes,
    fp8_remedy_bytes,
)
from batchmill.engine.models.int4_gpu_weights import (
    check_int4_gpu_model,
    int4_gpu_bytes,
    int4_host_bytes,
)
from batchmill.engine.models.kv_scales import KvScales
from batchmill.engine.models.model import Model
from batchmill.engine.models.model_config import ModelConfig
from batchmill.engine.models.model_length import check_max_model_len
from batchmill.engine.models.shard import Shard
from batchmill.engine.models.split_layers import Ranks, SplitDecoder
from batchmill.engine.models.weight_files import stored_names
from batchmill.engine.models.weights import DecoderWeights, weights_bytes
from batchmill.kernels.ops.fp8_linear import FP8_VERSION
from batchmill.kernels.ops.int4_gpu_linear import INT4_GPU_VERSION
from batchmill.kernels.ops.int4_linear import INT4_VERSION
from batchmill.kernels.ops.int8_linear import INT8_VERSION

from .config_check import brief, check_config_file, check_rope_types
from .kv_scales import read_kv_scales
from .load_options import LoadOptions
from .quantized.formats import quantization_settings, read_scheme, scheme_identity
from .quantized.scheme import Scheme
from .tied_head import untied_if_stored
from .weight_loading import load_weights

_HOST = torch.device("cpu")
#: Of a kept weight of 4 bits until its layer is packed: a byte, and its share of a scale and of a
#: zero point, which are floats for 32 weights or more.
_KEPT_BITS = 10

#: Part of a quantized model's identity: raised when its arithmetic changes.
_QUANTIZATION_VERSIONS = {"int8": INT8_VERSION, "int4": INT4_VERSION, "fp8": FP8_VERSION}
_VERSIONS_ON_GPU = {"int4": INT4_GPU_VERSION, "fp8": FP8_VERSION}

#: What is not unpacked, by quantization.
_KEPT = {
    "int4": " unless they have 4 bits",
    "fp8": " unless they are floats of 8 bits with scales of rows or of the whole weight",
}

_log = logging.getLogger(__name__)


def load_shard(folder: Path, options: LoadOptions) -> Model:
    """Load the shard of a rank that does not sample: its weights alone.

    Args:
        folder: The model's files.
        options: With the ranks.

    Raises:
        ModelLoadError: the model cannot be read, or is not divided here.
    """
    make_current(options.device)
    hf_config = read_hf_config(folder)
    return load_computation(folder, hf_config.to_dict(), hf_config, options)[0]


def load_computation(
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
        kept = _KEPT.get(options.quantization or "", "")
        _log.info("the weights are stored in %s, and are unpacked%s", scheme.name, kept)
    native_config = _native_config(options.model_impl, values)
    if native_config is not None:
        if options.max_model_len is not None:  # before any file of weights is opened
            check_max_model_len(options.max_model_len, native_config.max_position_embeddings)
        native_config = untied_if_stored(folder, native_config, scheme)
        computation = describe_computation(native_config, options.quantization, options.device)
        if stored_as is not None:
            computation += scheme_identity(stored_as)
            if options.quantization == "fp8":
                computation += " kept in fp8"
        scales = read_kv_scales(stored_names(folder), native_config.num_layers, stored_as or {})
        return _load_decoder(folder, native_config, options, scheme, scales), computation
    options.refuse_ranks("computed by transformers")
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
    folder: Path,
    config: ModelConfig,
    options: LoadOptions,
    scheme: Scheme | None,
    kv_scales: KvScales | None,
) -> DecoderModel:
    if options.ranks is not None:
        return _load_part(folder, config, options, options.ranks, scheme, kv_scales)
    weights = read_weights(
        folder, config, options.dtype, options.device, options.quantization, scheme
    )
    return DecoderModel(
        config,
        weights,
        linear=options.linear,
        quantization=options.quantization,
        kv_scales=kv_scales,
    )


def _load_part(
    folder: Path,
    config: ModelConfig,
    options: LoadOptions,
    ranks: Ranks,
    scheme: Scheme | None,
    kv_scales: KvScales | None,
) -> DecoderModel:
    dtype, device = options.dtype, options.device
    shard = Shard(config, ranks.rank, ranks.num_ranks)
    num_bytes = weights_bytes(shard.weights_config, dtype)
    check_weights_fit(num_bytes, dtype, device, free_memory_bytes(device))
    weights = load_weights(folder, shard.weights_config, dtype, device, scheme=scheme, shard=shard)
    split = SplitDecoder(shard, ranks)
    return DecoderModel(
        shard.local_config, weights, linear=options.linear, split=split, kv_scales=kv_scales
    )


def describe_computation(
    config: ModelConfig, quantization: str | None, device: torch.device = _HOST
) -> str:
    """Return a text of all that decides a native model's tokens besides its files."""
    versions = _VERSIONS_ON_GPU if device.type == "cuda" else _QUANTIZATION_VERSIONS
    version = "" if quantization is None else f" {versions[quantization]}"
    return repr(config) + version


def read_weights(
    folder: Path,
    config: ModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    quantization: str | None,
    scheme: Scheme | None = None,
) -> DecoderWeights:
    """Read weights in `dtype`, or in fp8; layers that a GPU packs stay on the host until then."""
    if quantization == "int4" and device.type == "cuda":
        check_int4_gpu_model(config, is_stored=scheme is not None)
        check_weights_fit(int4_gpu_bytes(config, dtype), dtype, device, free_memory_bytes(device))
        check_weights_fit(int4_host_bytes(config, dtype), dtype, _HOST, free_memory_bytes(_HOST))
        return load_weights(
            folder, config, dtype, device, layer_device=_HOST, scheme=scheme, keeps_groups=True
        )
    free_bytes = free_memory_bytes(device)
    if quantization != "fp8":
        fp8_bytes = _fp8_bytes_on_gpu(config, dtype) if device.type == "cuda" else None
        keeps_groups = quantization == "int4" and scheme is not None
        needed = weights_bytes(config, dtype, matrix_bits=_KEPT_BITS if keeps_groups else None)
        check_weights_fit(needed, dtype, device, free_bytes, fp8_bytes)
        return load_weights(folder, config, dtype, device, scheme=scheme, keeps_groups=keeps_groups)
    check_fp8_model(config)
    check_weights_fit(fp8_loading_bytes(config, dtype), dtype, device, free_bytes)
    check_weights_fit(fp8_host_bytes(config, dtype), dtype, _HOST, free_memory_bytes(_HOST))
    return load_weights(
        folder, config, dtype, device, layer_device=_HOST, scheme=scheme, in_fp8=True
    )


def _fp8_bytes_on_gpu(config: ModelConfig, dtype: torch.dtype) -> int | None:
    """Return the bytes that a GPU needs to load the model in fp8, or None if it cannot load it."""
    if fp8_remedy_bytes(config, dtype) is None:
        return None
    if fp8_host_bytes(config, dtype) > free_memory_bytes(_HOST):
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


def read_hf_config(folder: Path) -> PreTrainedConfig:
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
