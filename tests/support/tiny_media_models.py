"""Tiny models with random weights that take pictures or sounds, saved as Hugging Face folders.

Each comes with the prompt and the inputs that transformers makes of a chat: what ours is compared
with.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as PilImage
from transformers import (
    AutoTokenizer,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3Processor,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3ASRConfig,
    Qwen3ASRFeatureExtractor,
    Qwen3ASRForConditionalGeneration,
    Qwen3ASRProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
    VoxtralConfig,
    VoxtralForConditionalGeneration,
    WhisperFeatureExtractor,
)
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from batchmill.engine.contract.media import Audio, Image, Media

from .byte_tokenizer import save_byte_tokenizer

#: Sizes of the decoders. Typed `Any`, as in `tiny_models.py`.
TEXT: dict[str, Any] = {
    "vocab_size": 272,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 2048,
    "initializer_range": 0.4,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": 256,
}
#: Writes messages whose contents are texts or parts.
_TEMPLATE = (
    "{%% for m in messages %%}{{ m['role'] }}:"
    "{%% if m['content'] is string %%}{{ m['content'] }}{%% else %%}"
    "{%% for p in m['content'] %%}"
    "{%% if p['type'] == 'text' %%}{{ p['text'] }}{%% else %%}%s{%% endif %%}"
    "{%% endfor %%}{%% endif %%};{%% endfor %%}"
    "{%% if add_generation_prompt %%}assistant:{%% endif %%}"
)


@dataclass(frozen=True, slots=True)
class TinyMediaModel:
    """A saved model, and transformers' view of it."""

    folder: Path
    hf_model: PreTrainedModel
    #: What a chat's template writes for each medium.
    written: str
    #: Returns a medium of its kind, of size 0, 1 or 2, from a seed.
    make: Callable[[int, int], Media]
    #: Returns the inputs that transformers' processor makes of a rendered text and media.
    process: Callable[[str, Sequence[Media]], dict[str, Any]] = field(repr=False)


def image(seed: int, width: int = 40, height: int = 30) -> Image:
    """Return a picture of random colours."""
    generator = np.random.default_rng(seed)
    coarse = generator.integers(0, 256, (3, 4, 3), dtype=np.uint8)
    large = PilImage.fromarray(coarse).resize((width, height), PilImage.Resampling.BICUBIC)
    return Image(width, height, large.tobytes())


def pil(medium: Media) -> PilImage.Image:
    """Return a picture as Pillow has it."""
    assert isinstance(medium, Image)
    return PilImage.frombytes("RGB", (medium.width, medium.height), medium.pixels)


def save_idefics3(folder: Path, *, smol: bool = False) -> TinyMediaModel:
    """Save a tiny Idefics3 or SmolVLM, whose tiles are 32 pixels wide and have 4 features."""
    special = ["<image>", "<fake_token_around_image>", "<end_of_utterance>"]
    save_byte_tokenizer(folder, special, _TEMPLATE % "<image>")
    classes: tuple[Any, Any] = (
        (SmolVLMConfig, SmolVLMForConditionalGeneration)
        if smol
        else (Idefics3Config, Idefics3ForConditionalGeneration)
    )
    config = classes[0](
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 8,
            "initializer_range": 0.2,
        },
        text_config={"model_type": "llama", **TEXT},
        image_token_id=257,
        scale_factor=2,
        tie_word_embeddings=False,
        pad_token_id=0,
    )
    model = _saved(classes[1], config, folder)
    images = Idefics3ImageProcessorPil(
        size={"longest_edge": 64}, max_image_size={"longest_edge": 32}
    )
    images.save_pretrained(folder)
    processor = Idefics3Processor(images, AutoTokenizer.from_pretrained(folder), image_seq_len=4)

    def process(text: str, media: Sequence[Media]) -> dict[str, Any]:
        pictures = [[pil(each) for each in media]] if media else None
        inputs = processor(
            text=[text], images=pictures, add_special_tokens=False, return_tensors="pt"
        )
        return dict(inputs)

    return TinyMediaModel(folder, model, "<image>", _picture, process)


def save_voxtral(folder: Path) -> TinyMediaModel:
    """Save a tiny Voxtral, whose stretches are 0.32 s long and have 4 features."""
    save_byte_tokenizer(folder, ["[AUDIO]"], _TEMPLATE % "[AUDIO]")
    config = VoxtralConfig(
        audio_config={
            "hidden_size": 32,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_mel_bins": 16,
            "max_source_positions": 16,
        },
        text_config={"model_type": "llama", **TEXT},
        audio_token_id=257,
    )
    model = _saved(VoxtralForConditionalGeneration, config, folder)
    extractor: Any = WhisperFeatureExtractor(feature_size=16)
    extractor.save_pretrained(folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)

    def process(text: str, media: Sequence[Media]) -> dict[str, Any]:
        stretches = []
        for each in media:
            found = extractor(
                _samples(each),
                sampling_rate=16_000,
                padding=True,
                truncation=False,
                pad_to_multiple_of=5120,
                return_tensors="pt",
            )
            spectrum = found["input_features"].reshape(16, -1, 32).transpose(0, 1)
            text = text.replace("[AUDIO]", "<A>" * 4 * len(spectrum), 1)
            stretches.append(spectrum)
        text = text.replace("<A>", "[AUDIO]")
        inputs = dict(tokenizer(text, add_special_tokens=False, return_tensors="pt"))
        return {**inputs, "input_features": torch.cat(stretches)} if stretches else inputs

    return TinyMediaModel(folder, model, "[AUDIO]", _sound, process)


def save_qwen3_asr(folder: Path) -> TinyMediaModel:
    """Save a tiny Qwen3-ASR, which makes 13 features of a second."""
    audio_tokens = ["<|audio_pad|>", "<|audio_start|>", "<|audio_end|>"]
    written = "<|audio_start|><|audio_pad|><|audio_end|>"
    save_byte_tokenizer(folder, audio_tokens, _TEMPLATE % written)
    config = Qwen3ASRConfig(
        audio_config={
            "model_type": "qwen3_asr_encoder",
            "d_model": 32,
            "encoder_ffn_dim": 64,
            "encoder_layers": 2,
            "encoder_attention_heads": 2,
            "num_mel_bins": 128,
            "downsample_hidden_size": 8,
            "n_window_infer": 200,
            "output_dim": 32,
        },
        text_config={"model_type": "qwen3", **TEXT},
        audio_token_id=257,
        eos_token_id=256,
        tie_word_embeddings=False,
    )
    model = _saved(Qwen3ASRForConditionalGeneration, config, folder)
    extractor = Qwen3ASRFeatureExtractor()
    extractor.save_pretrained(folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    for name, token in zip(("audio", "audio_bos", "audio_eos"), audio_tokens, strict=True):
        setattr(tokenizer, f"{name}_token", token)
    tokenizer.pad_token = tokenizer.eos_token
    processor = Qwen3ASRProcessor(extractor, tokenizer)

    def process(text: str, media: Sequence[Media]) -> dict[str, Any]:
        if not media:
            return dict(tokenizer(text, add_special_tokens=False, return_tensors="pt"))
        # It takes one sound per text, so each sound comes with an own part of the text.
        pieces = text.split(written)
        texts = [f"{piece}{written}" for piece in pieces[:-1]]
        found = [
            processor(part, _samples(each), add_special_tokens=False)
            for part, each in zip(texts, media, strict=True)
        ]
        last = tokenizer(pieces[-1], add_special_tokens=False, return_tensors="pt")["input_ids"]
        input_ids = torch.cat([*(each["input_ids"] for each in found), last], dim=1)
        longest = max(each["input_features"].shape[-1] for each in found)

        def padded(name: str) -> torch.Tensor:
            parts = (each[name] for each in found)
            return torch.cat(
                [torch.nn.functional.pad(each, (0, longest - each.shape[-1])) for each in parts]
            )

        return {
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids),
            "input_features": padded("input_features"),
            "input_features_mask": padded("input_features_mask"),
        }

    return TinyMediaModel(folder, model, written, _sound, process)


def save_qwen_vl(folder: Path, classes: tuple[Any, Any], vision: dict[str, Any]) -> TinyMediaModel:
    """Save a tiny vision model of Qwen, whose features are 8 pixels wide."""
    written = "<|vision_start|><|image_pad|><|vision_end|>"
    tokens = ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]
    save_byte_tokenizer(folder, tokens, _TEMPLATE % written)
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
    config = classes[0](
        vision_config={
            "patch_size": 4,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "num_heads": 2,
            **vision,
        },
        text_config={**TEXT, "rope_parameters": rope},
        image_token_id=257,
        video_token_id=258,
        vision_start_token_id=259,
        vision_end_token_id=260,
        tie_word_embeddings=False,
    )
    model = _saved(classes[1], config, folder)
    images = Qwen2VLImageProcessorPil(
        size={"shortest_edge": 256, "longest_edge": 2560}, patch_size=4, merge_size=2
    )
    images.save_pretrained(folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)

    def process(text: str, media: Sequence[Media]) -> dict[str, Any]:
        pictures: dict[str, Any] = {}
        if media:
            pictures = dict(images(list(map(pil, media)), return_tensors="pt"))
        for grid in pictures.get("image_grid_thw", ()):
            text = text.replace("<|image_pad|>", "<A>" * (int(grid.prod()) // 4), 1)
        text = text.replace("<A>", "<|image_pad|>")
        inputs = dict(tokenizer(text, add_special_tokens=False, return_tensors="pt"))
        types = (inputs["input_ids"] == 257).int()
        return {**inputs, **pictures, "mm_token_type_ids": types}

    return TinyMediaModel(folder, model, written, _picture, process)


def save_qwen2_vl(folder: Path) -> TinyMediaModel:
    """Save a tiny Qwen2-VL."""
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2}
    return save_qwen_vl(folder, (Qwen2VLConfig, Qwen2VLForConditionalGeneration), vision)


def save_qwen2_5_vl(folder: Path) -> TinyMediaModel:
    """Save a tiny Qwen2.5-VL, one layer of which attends in windows."""
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "out_hidden_size": 32,
        "window_size": 16,
        "fullatt_block_indexes": [1],
    }
    return save_qwen_vl(folder, (Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration), vision)


def save_qwen3_vl(folder: Path) -> TinyMediaModel:
    """Save a tiny Qwen3-VL, with features for two layers of its decoder."""
    vision = {
        "depth": 3,
        "hidden_size": 32,
        "intermediate_size": 64,
        "out_hidden_size": 32,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0, 1],
    }
    return save_qwen_vl(folder, (Qwen3VLConfig, Qwen3VLForConditionalGeneration), vision)


def _picture(seed: int, size: int) -> Image:
    return image(seed, *((40, 30), (30, 40), (90, 50))[size])


def _sound(seed: int, size: int) -> Audio:
    """Return a chord of random pitches, at the rate that models take."""
    times = np.arange((9_000, 4_000, 21_000)[size]) / 16_000
    pitches = np.random.default_rng(seed).uniform(200, 2_000, 3)
    chord = sum(np.sin(2 * np.pi * pitch * times) for pitch in pitches) / 3
    return Audio(16_000, np.asarray(chord, dtype="<f4").tobytes())


def _samples(medium: Media) -> NDArray[np.float32]:
    assert isinstance(medium, Audio)
    return np.frombuffer(medium.samples, dtype="<f4").copy()


def _saved(model_class: Any, config: Any, folder: Path) -> PreTrainedModel:
    """Save a model with random weights, and return it.

    They are so large that pictures and positions decide the tokens.
    """
    torch.manual_seed(0)
    model: PreTrainedModel = model_class(config)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1 and "embed_tokens" not in name:
                weight.normal_(0, 0.25)
    model.save_pretrained(folder)
    evaluated: PreTrainedModel = model.eval()
    return evaluated


SAVERS: dict[str, Callable[[Path], TinyMediaModel]] = {
    "idefics3": save_idefics3,
    "smolvlm": lambda folder: save_idefics3(folder, smol=True),
    "voxtral": save_voxtral,
    "qwen3-asr": save_qwen3_asr,
    "qwen2-vl": save_qwen2_vl,
    "qwen2.5-vl": save_qwen2_5_vl,
    "qwen3-vl": save_qwen3_vl,
}
