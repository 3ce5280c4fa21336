"""LoRA adapters with random weights, written without PEFT."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

HIDDEN, INNER = 32, 64
#: Inputs and outputs of modules of `tests/engine/tiny_model.py`.
TINY_MODULES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.v_proj": (HIDDEN, 16),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.up_proj": (HIDDEN, INNER),
    "mlp.down_proj": (INNER, HIDDEN),
}
#: The same of some modules of SmolLM2-135M, the demo model.
DEMO_MODULES = {
    "self_attn.q_proj": (576, 576),
    "self_attn.v_proj": (576, 192),
    "mlp.down_proj": (1536, 576),
}


def write_adapter(
    folder: Path,
    seed: int,
    *,
    rank: int = 4,
    modules: Mapping[str, tuple[int, int]] = TINY_MODULES,
    num_layers: int = 2,
    std: float = 0.3,
) -> Path:
    """Write an adapter as PEFT saves it; another seed is another version."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 2 * rank, "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(num_layers):
        for module, (inputs, outputs) in modules.items():
            name = f"base_model.model.model.layers.{layer}.{module}"
            down = torch.randn(rank, inputs, generator=generator)
            tensors[f"{name}.lora_A.weight"] = down * std
            up = torch.randn(outputs, rank, generator=generator)
            tensors[f"{name}.lora_B.weight"] = up * std
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder
