"""The tokens that transformers itself generates, which ours are compared with."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel


def transformers_greedy(model: PreTrainedModel, prompt: list[int], **settings: Any) -> list[int]:
    """Return the tokens that transformers generates greedily after a prompt.

    Args:
        model: As transformers loads it.
        prompt: Token ids.
        settings: For `generate`, such as `max_new_tokens`.
    """
    input_ids = torch.tensor([prompt])
    generate: Any = model.generate  # its annotations do not fit transformers' own models
    with torch.inference_mode():
        generated = generate(
            input_ids, attention_mask=torch.ones_like(input_ids), do_sample=False, **settings
        )
    tokens: list[int] = generated[0, len(prompt) :].tolist()
    return tokens
