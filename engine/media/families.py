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
        text = dict(values["text_config"])
        kind = text.get("model_type")
        text["architectures"] = [_DECODERS.get(str(kind), f"decoder of kind {kind!r}")]
        return text if tied is None else {**text, "tie_word_embeddings": tied}


#: The native family of a decoder, by the `model_type` of its configuration.
_DECODERS: Mapping[str, str] = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
_IDEFICS3 = MediaFamily("image", ".idefics3", "Idefics3Media", "image_token_id")

#: By Hugging Face class name.
MEDIA_FAMILIES: Mapping[str, MediaFamily] = {
    "Idefics3ForConditionalGeneration": _IDEFICS3,
    "SmolVLMForConditionalGeneration": _IDEFICS3,
    "VoxtralForConditionalGeneration": MediaFamily(
        "audio", ".voxtral", "VoxtralMedia", "audio_token_id"
    ),
    "Qwen3ASRForConditionalGeneration": MediaFamily(
        "audio", ".qwen3_asr", "Qwen3AsrMedia", "audio_token_id"
    ),
}


def media_family(values: Mapping[str, Any]) -> MediaFamily | None:
    """Return the family that a configuration names, or None if there is none."""
    names = values.get("architectures") or ()
    return next((MEDIA_FAMILIES[name] for name in names if name in MEDIA_FAMILIES), None)
