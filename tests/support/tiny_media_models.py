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
from PIL import Image as PilImage
from transformers import (
    AutoTokenizer,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3Processor,
    PreTrainedModel,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

from batchmill.engine.contract.media import Image, Media

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
    torch.manual_seed(0)
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
    model = classes[1](config)
    _spread(model)
    model.save_pretrained(folder)
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

    return TinyMediaModel(folder, model.eval(), "<image>", process)


def _spread(model: PreTrainedModel) -> None:
    """Make random weights so large that pictures and positions decide the tokens."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1 and "embed_tokens" not in name:
                weight.normal_(0, 0.25)


SAVERS: dict[str, Callable[[Path], TinyMediaModel]] = {
    "idefics3": save_idefics3,
    "smolvlm": lambda folder: save_idefics3(folder, smol=True),
}
