"""Adapters that PEFT makes for the tiny model, with random weights, and what PEFT computes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import PreTrainedModel

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
NETWORK = ["gate_proj", "up_proj", "down_proj"]
#: One of each kind that is computed.
KINDS: dict[str, dict[str, Any]] = {
    "all": {"r": 4, "target_modules": ATTENTION + NETWORK},
    "queries and values": {"r": 8, "target_modules": ["q_proj", "v_proj"]},
    "rslora": {"r": 3, "target_modules": ATTENTION, "use_rslora": True, "lora_alpha": 5},
    "patterns": {
        "r": 4,
        "target_modules": ["q_proj", "k_proj", "up_proj"],
        "rank_pattern": {"layers.1.self_attn.q_proj": 2, "up_proj": 6},
        "alpha_pattern": {"k_proj": 3, "layers.0.*up_proj": 20},
    },
    "last layer": {"r": 2, "target_modules": NETWORK, "layers_to_transform": [1]},
    "first layer": {"r": 2, "target_modules": ["gate_proj"], "layers_to_transform": [0]},
    "output": {"r": 5, "target_modules": ["o_proj", "down_proj"]},
    "exclusions": {"r": 4, "target_modules": "all-linear", "exclude_modules": ["lm_head"]},
}


@contextmanager
def quiet() -> Iterator[None]:
    """Ignore a name that PEFT still uses of transformers."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        warnings.filterwarnings("ignore", "Already found a `peft_config`", UserWarning)
        yield


def save_adapter(model: PreTrainedModel, folder: Path, *, seed: int, **config: Any) -> Path:
    """Save an adapter with random weights, and leave the model without it."""
    torch.manual_seed(seed)
    with quiet():
        adapted = get_peft_model(model, LoraConfig(**{"init_lora_weights": False, **config}))
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_" in name:
                weight.normal_(std=0.3)
    adapted.save_pretrained(str(folder))
    adapted.unload()
    return folder


def greedy(
    model: PreTrainedModel,
    folder: Path | None,
    prompt: list[int],
    num_tokens: int,
    *,
    negative: list[int] | None = None,
    scale: float = 1.0,
) -> list[int]:
    """Return the tokens that PEFT finds likeliest, one by one; guided by a negative prompt."""
    adapted: Any = model
    if folder is not None:
        with quiet():
            adapted = PeftModel.from_pretrained(model, str(folder))
    ids = list(prompt)
    with torch.inference_mode():
        for _ in range(num_tokens):
            logits = adapted(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
            if negative is not None:
                guide_ids = [*negative, *ids[len(prompt) :]]
                other = adapted(torch.tensor([guide_ids])).logits[0, -1].log_softmax(-1)
                logits = other + scale * (logits - other)
            ids.append(int(logits.argmax()))
    if folder is not None:
        adapted.unload()
    return ids[len(prompt) :]
