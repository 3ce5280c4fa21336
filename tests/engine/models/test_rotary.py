"""Rotation angles against transformers' own, for every scaling that is computed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import Gemma3TextConfig, LlamaConfig, Phi3Config, PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from batchmill.engine.errors import UnsupportedModelError
from batchmill.engine.models.rope_config import ROPE_TYPES, longest_exact_length, read_rope
from batchmill.engine.models.rotary import cos_sin, inverse_frequencies

HEAD_DIM = 64
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"factor": 4.0, "original_max_position_embeddings": 512}
SCALINGS: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 2.5},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "llama3": {"rope_type": "llama3", "original_max_position_embeddings": 1024, **LLAMA3},
    "llama3, no original length": {"rope_type": "llama3", **LLAMA3},
    "yarn": {"rope_type": "yarn", **YARN},
    "yarn, bounds not rounded": {"rope_type": "yarn", **YARN, "truncate": False},
    "yarn, betas": {"rope_type": "yarn", **YARN, "beta_fast": 20.0, "beta_slow": 2.0},
    "yarn, attention factor": {"rope_type": "yarn", **YARN, "attention_factor": 1.25},
    "yarn, mscales": {"rope_type": "yarn", **YARN, "mscale": 0.707, "mscale_all_dim": 1.5},
}


def llama(scaling: dict[str, Any]) -> PreTrainedConfig:
    rope: dict[str, Any] = {"rope_theta": 5e5, "rope_scaling": dict(scaling)}
    return LlamaConfig(hidden_size=256, num_attention_heads=4, max_position_embeddings=4096, **rope)


def phi3(**values: Any) -> PreTrainedConfig:
    rotary_pairs = 24  # three quarters of a head of 64
    rope: dict[str, Any] = {
        "partial_rotary_factor": 0.75,
        "rope_scaling": {
            "rope_type": "longrope",
            "short_factor": [1 + index / 10 for index in range(rotary_pairs)],
            "long_factor": [2.0 + index for index in range(rotary_pairs)],
            **values,
        },
    }
    return Phi3Config(
        hidden_size=256,
        num_attention_heads=4,
        max_position_embeddings=4096,
        original_max_position_embeddings=1024,
        **rope,
    )


def check(config: PreTrainedConfig, layer_type: str | None = None) -> None:
    rope = read_rope(config.to_dict(), layer_type)
    init = ROPE_INIT_FUNCTIONS[rope.rope_type]
    expected, attention_factor = init(config, torch.device("cpu"), layer_type=layer_type)
    torch.testing.assert_close(inverse_frequencies(rope, HEAD_DIM), expected, rtol=2e-6, atol=0)
    assert rope.attention_factor == pytest.approx(attention_factor, rel=1e-12)


@pytest.mark.parametrize("name", SCALINGS)
def test_angles_equal_transformers(name: str) -> None:
    check(llama(SCALINGS[name]))


def test_longrope_equals_transformers_within_its_training_context() -> None:
    check(phi3())
    check(phi3(attention_factor=1.5))
    assert longest_exact_length(phi3().to_dict()) == 1024
    assert longest_exact_length(llama(SCALINGS["yarn"]).to_dict()) == 4096


def test_layer_types_may_have_different_rotations() -> None:
    rope: dict[str, Any] = {
        "rope_theta": 1e6,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    }
    config = Gemma3TextConfig(head_dim=HEAD_DIM, **rope)
    check(config, "full_attention")
    local = read_rope(config.to_dict(), "sliding_attention")
    assert (local.rope_type, local.theta) == ("default", 1e4)


def test_every_scaling_of_transformers_is_computed_or_refused_by_name() -> None:
    refused = set(ROPE_INIT_FUNCTIONS) - set(ROPE_TYPES)
    assert refused == {"proportional"}
    for rope_type in refused:
        values = llama({"rope_type": "default"}).to_dict()
        values["rope_parameters"]["rope_type"] = rope_type
        with pytest.raises(UnsupportedModelError, match=f"RoPE scaling is '{rope_type}'"):
            read_rope(values)


def test_the_attention_factor_scales_cosines_and_sines() -> None:
    positions, frequencies = torch.tensor([0, 3]), torch.tensor([0.5, 0.25])
    plain = cos_sin(positions, frequencies)
    scaled = cos_sin(positions, frequencies, 1.5)
    for one, other in zip(plain, scaled, strict=True):
        torch.testing.assert_close(one * 1.5, other)
