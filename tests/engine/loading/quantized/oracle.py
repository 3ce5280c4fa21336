"""Tiny models that tests store in quantized formats, compared with their dense weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, PreTrainedModel

from batchmill.engine.loading.loading import LoadedModel, load_model

from ....support.tiny_models import SIZES, architecture_of, save_tokenizer
from ...model_steps import full_logits, largest_error, make_requests, make_runner

#: Sizes that words of 32 bits and groups of 32 divide, and blocks of 48 do not.
SMALL: dict[str, Any] = {
    **SIZES,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "head_dim": 16,
}
LLAMA: PreTrainedConfig = LlamaConfig(**SMALL)
_PROMPT_LENGTHS = [1, 7, 33]


def make_model(config: PreTrainedConfig = LLAMA) -> PreTrainedModel:
    """Return a model with random weights in float32."""
    torch.manual_seed(5)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(1.0 if "norm" in name else 0.0, 0.2)
    model.eval()
    return model


def projection(model: PreTrainedModel, name: str) -> torch.nn.Linear:
    """Return a linear module by its name."""
    module = model.get_submodule(name)
    assert isinstance(module, torch.nn.Linear)
    return module


def save(
    folder: Path, config: PreTrainedConfig, tensors: Mapping[str, Tensor], settings: object
) -> None:
    """Save a checkpoint with `quantization_config`, and a tokenizer."""
    save_file(
        {name: value.detach().clone().contiguous() for name, value in tensors.items()},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )
    config.save_pretrained(folder)
    change_config(folder, quantization_config=settings, architectures=[architecture_of(config)])
    save_tokenizer(folder)


def change_config(folder: Path, **values: object) -> None:
    """Change values of config.json; None removes one."""
    path = folder / "config.json"
    changed = json.loads(path.read_text()) | values
    path.write_text(json.dumps({key: each for key, each in changed.items() if each is not None}))


def change_settings(folder: Path, **values: object) -> None:
    """Change values of `quantization_config`."""
    settings = json.loads((folder / "config.json").read_text())["quantization_config"]
    change_config(folder, quantization_config=settings | values)


def move_settings(folder: Path, file: str, settings: object) -> None:
    """Write settings to a file of their own instead of config.json."""
    change_config(folder, quantization_config=None)
    (folder / file).write_text(json.dumps(settings))


def change_tensors(folder: Path, changed: Mapping[str, Tensor | None]) -> None:
    """Change stored tensors; None removes one."""
    path = folder / "model.safetensors"
    tensors = load_file(path) | dict(changed)
    kept = {name: value for name, value in tensors.items() if value is not None}
    save_file(kept, path, metadata={"format": "pt"})


def load(folder: Path, dtype: str = "float32", **settings: Any) -> LoadedModel:
    return load_model(str(folder), dtype=dtype, device="cpu", **settings)


def logits_error(folder: Path, dense: PreTrainedModel) -> float:
    """Return the largest difference between our logits and those of a dense model."""
    loaded = load(folder)
    requests = make_requests(_PROMPT_LENGTHS, loaded.config.vocab_size)
    want = full_logits(dense, requests)
    assert max(logits.abs().max().item() for logits in want) > 0.5  # logits worth comparing
    return largest_error(make_runner(loaded.model), requests, want, [40])
