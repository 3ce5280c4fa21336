"""Loads the part of a model that turns pictures or sounds into features, without its decoder."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from batchmill.engine.errors import ModelLoadError
from batchmill.engine.models.weight_files import weight_files

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

#: Modules of the classes here that belong to the decoder.
_DECODER_PARTS = ("text_model", "language_model", "lm_head")


def load_tower(
    model_class: type[PreTrainedModel],
    folder: Path,
    hf_config: PreTrainedConfig,
    dtype: torch.dtype,
    device: torch.device,
) -> Any:
    """Return a transformers model whose decoder has no layers and a vocabulary of one token.

    The native decoder computes the layers. Only the tower and what joins it to the decoder is read
    and kept here; transformers knows all names under which it may be stored.

    Args:
        model_class: Its class.
        folder: The model's files.
        hf_config: Its configuration.
        dtype: Of the weights.
        device: Of the weights.

    Raises:
        ModelLoadError: the weights cannot be read, or some are missing.
    """
    weight_files(folder)  # refuses pickles
    config = _without_decoder(hf_config)
    auto: Any = model_class
    try:
        with _quiet():
            model, info = auto.from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                use_safetensors=True,
                local_files_only=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        raise ModelLoadError(
            f"transformers cannot load the tower in {folder} ({type(error).__name__}: {error})"
        ) from error
    lacking = [*info["missing_keys"], *(str(each[0]) for each in info["mismatched_keys"])]
    lacking = sorted(name for name in lacking if not set(_DECODER_PARTS) & set(name.split(".")))
    if lacking:
        raise ModelLoadError(
            f"{folder} lacks {len(lacking)} weights of the tower of a {model_class.__name__}, or "
            f"has them in another shape, among them {lacking[0]}: download the model again"
        )
    return model.to(device).eval().requires_grad_(False)


def _without_decoder(hf_config: PreTrainedConfig) -> Any:
    config: Any = copy.deepcopy(hf_config)
    text = config.get_text_config()
    text.num_hidden_layers = 0
    if getattr(text, "layer_types", None) is not None:
        text.layer_types = []
    text.vocab_size = 1
    for each in (config, text):
        if getattr(each, "pad_token_id", None) is not None:
            each.pad_token_id = 0  # must be in the vocabulary
        # Packed weights belong to the decoder; a tower in one of these formats is refused.
        if hasattr(each, "quantization_config"):
            del each.quantization_config
    return config


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence warnings of weights that are not used: those of the decoder."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)
