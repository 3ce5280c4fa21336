"""The model classes that take pictures or sounds: their decoder, and how their tower is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any

from .model import MediaModel, MediaSource


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
    #: What its decoder's `rope_parameters` must say, and what they say if nothing is written.
    rope: Mapping[str, Any] = field(default_factory=dict)
    rope_defaults: Mapping[str, Any] = field(default_factory=dict)

    def load(self, source: MediaSource) -> MediaModel:
        """Load the tower, and the settings of its processor.

        Raises:
            ModelLoadError: weights or settings cannot be read.
        """
        media_class = getattr(import_module(self.module, __package__), self.class_name)
        model: MediaModel = media_class(source)
        return model

    def decoder_values(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return the configuration of the decoder, as that of a model of its own."""
        tied = values.get("tie_word_embeddings")
        text = dict(values["text_config"])
        kind = text.get("model_type")
        text["architectures"] = [_DECODERS.get(str(kind), f"decoder of kind {kind!r}")]
        if self.rope:
            text["rope_parameters"] = {**self.rope_defaults, **text["rope_parameters"], **self.rope}
        if text.get("layer_types") is None:
            text["layer_types"] = ["full_attention"] * int(text["num_hidden_layers"])
        return text if tied is None else {**text, "tie_word_embeddings": tied}


#: The native family of a decoder, by the `model_type` of its configuration.
_DECODERS: Mapping[str, str] = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2_vl_text": "Qwen2ForCausalLM",
    "qwen2_5_vl_text": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "qwen3_vl_text": "Qwen3ForCausalLM",
}
_IDEFICS3 = MediaFamily("image", ".idefics3", "Idefics3Media", "image_token_id")

_QWEN2_VL = MediaFamily(
    "image",
    ".qwen_vl",
    "QwenVLMedia",
    "image_token_id",
    rope={"mrope_interleaved": False},
    rope_defaults={"mrope_section": [16, 24, 24]},
)

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
    "Qwen2VLForConditionalGeneration": _QWEN2_VL,
    "Qwen2_5_VLForConditionalGeneration": _QWEN2_VL,
    "Qwen3VLForConditionalGeneration": replace(
        _QWEN2_VL,
        rope={"mrope_interleaved": True},
        rope_defaults={"mrope_section": [24, 20, 20]},
    ),
}


def media_family(values: Mapping[str, Any]) -> MediaFamily | None:
    """Return the family that a configuration names, or None if there is none."""
    names = values.get("architectures") or ()
    return next((MEDIA_FAMILIES[name] for name in names if name in MEDIA_FAMILIES), None)
