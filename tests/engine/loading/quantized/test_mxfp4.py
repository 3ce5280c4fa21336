"""gpt-oss in MXFP4: the weights that transformers unpacks, and the logits and tokens of those."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GptOssConfig, PreTrainedModel
from transformers.integrations.mxfp4 import convert_moe_packed_tensors

from batchmill.engine.errors import ModelLoadError, UnsupportedModelError

from ...greedy_checks import WAYS, greedy_of_transformers
from ...model_steps import full_logits, largest_error, make_requests, make_runner
from .oracle import SMALL, change_tensors, load, logits_error, make_model, save

SETTINGS: dict[str, Any] = {
    "quant_method": "mxfp4",
    "modules_to_not_convert": ["model.layers.*.self_attn", "model.embed_tokens", "lm_head"],
}
GPT_OSS = GptOssConfig(
    **SMALL,
    sliding_window=9,
    num_local_experts=4,
    num_experts_per_tok=2,
    rope_parameters={
        "rope_type": "yarn",
        "rope_theta": 150000.0,
        "factor": 4.0,
        "truncate": False,
        "original_max_position_embeddings": 64,
    },
)
GATE_UP = "model.layers.1.mlp.experts.gate_up_proj"


def write(folder: Path) -> PreTrainedModel:
    """Save a model in MXFP4; return the dense model, by transformers' own unpacking."""
    model = make_model(GPT_OSS)
    tensors: dict[str, Tensor] = dict(model.state_dict())
    generator = torch.Generator().manual_seed(2)
    for name in [each for each in tensors if each.endswith(("gate_up_proj", "down_proj"))]:
        num_experts, num_inputs, num_outputs = tensors.pop(name).shape
        shape = (num_experts, num_outputs, num_inputs // 32)
        blocks = torch.randint(256, (*shape, 16), generator=generator, dtype=torch.uint8)
        scales = torch.randint(122, 126, shape, generator=generator, dtype=torch.uint8)
        tensors |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        dense = convert_moe_packed_tensors(blocks, scales, dtype=torch.float32)
        model.get_parameter(name).data = dense.contiguous()
    save(folder, GPT_OSS, tensors, SETTINGS)
    return model


def test_logits_are_those_of_the_weights_that_transformers_unpacks(tmp_path: Path) -> None:
    assert logits_error(tmp_path, write(tmp_path)) <= 1e-4


@pytest.mark.parametrize("way", WAYS)
def test_greedy_tokens_equal_transformers_however_computed(way: str, tmp_path: Path) -> None:
    expected = greedy_of_transformers(write(tmp_path))
    assert WAYS[way](tmp_path, load(tmp_path), expected) == expected


def test_int8_stays_near_the_unpacked_weights(tmp_path: Path) -> None:
    dense = write(tmp_path)
    requests = make_requests([7], GPT_OSS.vocab_size)
    want = full_logits(dense, requests)
    quantized = load(tmp_path, quantization="int8")
    # Rounding to 1/127 of a row's largest number; wrong experts or biases give errors as large.
    error = largest_error(make_runner(quantized.model), requests, want, [40])
    assert 1e-6 < error < 0.1 * want[0].abs().max().item()


def test_the_format_is_part_of_the_identity(tmp_path: Path) -> None:
    model = write(tmp_path)
    stored = load(tmp_path).identity
    save(tmp_path, GPT_OSS, model.state_dict(), None)
    assert load(tmp_path).identity != stored


def test_int4_is_refused_by_name(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(UnsupportedModelError, match=r"'int4'.* mxfp4 without integers"):
        load(tmp_path, quantization="int4")


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({f"{GATE_UP}_scales": None}, "gate_up_proj_scales is not stored"),
        ({f"{GATE_UP}_scales": torch.zeros(4, 256, 3, dtype=torch.uint8)}, r"shape \[4, 256, 3\]"),
        ({f"{GATE_UP}_blocks": torch.zeros(4, 256, 2, 16)}, "is torch.float32, but mxfp4"),
        ({f"{GATE_UP}_bias": None}, "gate_up_proj_bias"),
    ],
    ids=["no-scales", "scales-of-another-size", "no-integers", "no-bias"],
)
def test_damaged_weights_are_named(
    changed: dict[str, Tensor | None], problem: str, tmp_path: Path
) -> None:
    write(tmp_path)
    change_tensors(tmp_path, changed)
    with pytest.raises(ModelLoadError, match=problem):
        load(tmp_path)
