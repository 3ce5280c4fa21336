"""Any causal language model of transformers, on our paged KV cache and with our attention."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from .errors import ModelLoadError, UnsupportedModelError
from .families import named_architecture, refuse_quantized
from .kv_cache import KVCache
from .model_config import ModelShape
from .model_length import check_max_model_len, longest_length
from .step_inputs import StepInputs
from .transformers_attention import CurrentStep, PagedLayer
from .transformers_inspection import inspect_attention
from .transformers_self_check import check_against_own_attention
from .weight_files import weight_files


class TransformersModel:
    """Owns a transformers model whose attention runs over our cache.

    Attributes:
        config: What it looks like from outside.
        dtype: Of weights, activations and the KV cache.
        device: Where the weights are.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        """Bind every attention layer to our cache, and check that the logits stay the same.

        Args:
            model: In evaluation mode, on its device.

        Raises:
            UnsupportedModelError: our attention cannot serve it; the message says why.
        """
        self._model = model
        self.dtype, self.device = model.dtype, model.device
        calls = inspect_attention(model)
        self._step = CurrentStep()
        for index, call in enumerate(calls):
            PagedLayer(index, call.window, self._step).bind(call.module)
        parameters = inspect.signature(model.forward).parameters
        self._keeps_rows = "logits_to_keep" in parameters
        self.config = ModelShape(
            architecture=type(model).__name__,
            vocab_size=_vocab_size(model),
            num_layers=len(calls),
            num_kv_heads=calls[0].key_shape[1],
            head_dim=calls[0].key_shape[3],
            max_position_embeddings=longest_length(model.config),
        )
        check_against_own_attention(self, model)  # and leaves our attention switched on

    def forward(self, inputs: StepInputs, kv_cache: KVCache, logits: Tensor) -> None:
        """Run one step; see `Model.forward`."""
        self._step.begin(inputs, kv_cache)
        rows = {"logits_to_keep": inputs.sample_rows} if self._keeps_rows else {}
        try:
            computed: Tensor = self._model(
                input_ids=inputs.input_ids[None],
                position_ids=inputs.positions[None],
                use_cache=False,
                **rows,
            ).logits[0]
        finally:
            self._step.end()
        if not self._keeps_rows:
            computed = computed.index_select(0, inputs.sample_rows)
        logits.copy_(computed)


def load_transformers_model(
    folder: Path,
    hf_config: PreTrainedConfig,
    dtype: torch.dtype,
    device: torch.device,
    max_model_len: int | None = None,
) -> TransformersModel:
    """Load a model of a Hugging Face folder; see `load_model`.

    Raises:
        ConfigError: max_model_len is longer than the model was made for.
        UnsupportedModelError: it is no causal language model that our attention can serve.
        ModelLoadError: its weights cannot be read, or are not all there.
    """
    values = hf_config.to_dict()
    name = named_architecture(values)
    refuse_quantized(name, values)
    try:
        _refuse_class(hf_config, values)
        weight_files(folder)  # no pickles
        if max_model_len is not None:
            check_max_model_len(max_model_len, longest_length(hf_config))
        return TransformersModel(_read(folder, hf_config, dtype, device))
    except UnsupportedModelError as error:
        raise UnsupportedModelError(f"{name} cannot be served: {error}") from error


def _refuse_class(hf_config: PreTrainedConfig, values: dict[str, Any]) -> None:
    """Refuse what can be told without weights."""
    if hf_config.is_encoder_decoder:
        raise UnsupportedModelError("it is an encoder-decoder; supported are causal decoders")
    model_class: Any = AutoModelForCausalLM._model_mapping.get(type(hf_config), None)
    if model_class is None:
        raise UnsupportedModelError(
            f"transformers has no causal language model for model_type {hf_config.model_type!r}"
        )
    if model_class.__name__ not in (values.get("architectures") or [model_class.__name__]):
        raise UnsupportedModelError(
            f"for model_type {hf_config.model_type!r} transformers loads a {model_class.__name__}, "
            "which is another model"
        )
    if not model_class._can_set_attn_implementation():
        raise UnsupportedModelError("it does not take part in transformers' attention interface")
    if "position_ids" not in inspect.signature(model_class.forward).parameters:
        raise UnsupportedModelError("it takes no position_ids, so sequences cannot share a batch")


def _read(
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
            f"another size, among them {lacking[0]}: is the download complete?"
        )
    served: PreTrainedModel = model.to(device).eval()
    return served


def _vocab_size(model: PreTrainedModel) -> int:
    head: Any = model
    return int(head.get_output_embeddings().weight.shape[0])
