"""The model classes that take pictures or sounds: their decoder, and how their tower is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

from .model import MediaModel


@dataclass(frozen=True, slots=True)
class MediaFamily:
    """One architecture."""

    #: Kind of media that it takes.
    kind: str
    #: The native family of its decoder, by Hugging Face class name.
    decoder: str
    #: Module and class of its `MediaModel`: imported when such a model is loaded.
    module: str
    class_name: str
    #: Field of its configuration that has the id of the placeholder.
    placeholder_field: str

    def load(
        self,
        folder: Path,
        hf_config: PreTrainedConfig,
        placeholder: str,
        dtype: torch.dtype,
        device: torch.device,
    ) -> MediaModel:
        """Load the tower, and the settings of its processor.

        Args:
            folder: The model's files.
            hf_config: Its configuration.
            placeholder: Text of the token that stands for a row of features.
            dtype: Of its weights.
            device: Of its weights.

        Raises:
            ModelLoadError: weights or settings cannot be read.
        """
        media_class = getattr(import_module(self.module, __package__), self.class_name)
        model: MediaModel = media_class(folder, hf_config, placeholder, dtype, device)
        return model

    def decoder_values(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the configuration of the decoder, as that of a model of its own."""
        tied = values.get("tie_word_embeddings")
        text = {**values["text_config"], "architectures": [self.decoder]}
        return text if tied is None else {**text, "tie_word_embeddings": tied}


_IDEFICS3 = MediaFamily("image", "LlamaForCausalLM", ".idefics3", "Idefics3Media", "image_token_id")

#: By Hugging Face class name.
MEDIA_FAMILIES: Mapping[str, MediaFamily] = {
    "Idefics3ForConditionalGeneration": _IDEFICS3,
    "SmolVLMForConditionalGeneration": _IDEFICS3,
}


def media_family(values: Mapping[str, Any]) -> MediaFamily | None:
    """Return the family that a configuration names, or None if there is none."""
    names = values.get("architectures") or ()
    return next((MEDIA_FAMILIES[name] for name in names if name in MEDIA_FAMILIES), None)
