"""Loads a model that transformers computes, unless our attention cannot serve it."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from batchmill.engine.errors import ModelLoadError, UnsupportedModelError
from batchmill.engine.memory.device_memory import check_weights_fit, free_memory_bytes
from batchmill.engine.models.families import architecture_name
from batchmill.engine.models.model_length import check_max_model_len, longest_length
from batchmill.engine.models.surplus_weights import StoredTensor, check_surplus
from batchmill.engine.models.weight_files import stored_names, weight_files

from .model import TransformersModel
from .self_check import check_against_own_attention


def load_transformers_model(
    folder: Path,
    hf_config: PreTrainedConfig,
    dtype: torch.dtype,
    device: torch.device,
    max_model_len: int | None = None,
) -> TransformersModel:
    """Load a model from a Hugging Face folder; see `load_model`.

    Raises:
        ConfigError: the model was made for less than `max_model_len`, or its weights do not fit
            into memory.
        UnsupportedModelError: it is not a causal language model that our attention can serve.
        ModelLoadError: its weights cannot be read, some are missing, or some are stored that would
            change its output.
    """
    values = hf_config.to_dict()
    name = architecture_name(values)
    try:
        _refuse_class(hf_config, values)
        weight_files(folder)  # refuses pickles
        if max_model_len is not None:
            check_max_model_len(max_model_len, longest_length(hf_config))
        check_weights_fit(
            _weights_bytes(hf_config, dtype), dtype, device, free_memory_bytes(device)
        )
        hf_model = _read_model(folder, hf_config, dtype, device)
        model = TransformersModel(hf_model)
        check_against_own_attention(model, hf_model)  # leaves our attention in use
        return model
    except UnsupportedModelError as error:
        raise UnsupportedModelError(f"{name} cannot be served: {error}") from error


def _refuse_class(hf_config: PreTrainedConfig, values: dict[str, Any]) -> None:
    """Refuse a class that cannot be served, before weights are read."""
    if hf_config.is_encoder_decoder:
        raise UnsupportedModelError("it is an encoder-decoder; only causal decoders are supported")
    model_class: Any = AutoModelForCausalLM._model_mapping.get(type(hf_config), None)
    if model_class is None:
        raise UnsupportedModelError(
            f"transformers has no causal language model for model_type {hf_config.model_type!r}"
        )
    if model_class.__name__ not in (values.get("architectures") or [model_class.__name__]):
        raise UnsupportedModelError(
            f"transformers loads a {model_class.__name__} for model_type "
            f"{hf_config.model_type!r}, which is a different model"
        )
    if not model_class._can_set_attn_implementation():
        raise UnsupportedModelError("it does not use transformers' attention interface")
    if "position_ids" not in inspect.signature(model_class.forward).parameters:
        raise UnsupportedModelError(
            "it does not accept position_ids, so sequences cannot share a batch"
        )


def _weights_bytes(hf_config: PreTrainedConfig, dtype: torch.dtype) -> int:
    """Return the bytes of a model's weights, without reading or allocating any."""
    auto: Any = AutoModelForCausalLM
    with torch.device("meta"):
        model = auto.from_config(hf_config, attn_implementation="eager", trust_remote_code=False)
    num_weights: int = sum(weight.numel() for weight in model.parameters())
    return num_weights * dtype.itemsize


def _read_model(
    folder: Path, hf_config: PreTrainedConfig, dtype: torch.dtype, device: torch.device
) -> PreTrainedModel:
    auto: Any = AutoModelForCausalLM
    try:
        model, info = auto.from_pretrained(
            folder,
            config=hf_config,
            dtype=dtype,
            attn_implementation="eager",
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        raise ModelLoadError(
            f"transformers cannot load {folder} ({type(error).__name__}: {error})"
        ) from error
    lacking = sorted(info["missing_keys"]) + sorted(map(str, info["mismatched_keys"]))
    if lacking:
        raise ModelLoadError(
            f"{folder} lacks {len(lacking)} weights of a {type(model).__name__}, or has them in "
            f"another shape, among them {lacking[0]}: download the model again"
        )
    stored = stored_names(folder)
    unexpected = [name for name in info["unexpected_keys"] if name in stored]
    surplus = {name: StoredTensor(stored[name], name) for name in unexpected}
    check_surplus(surplus, model.state_dict().keys())
    served: PreTrainedModel = model.to(device).eval()
    return served
