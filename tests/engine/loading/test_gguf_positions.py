"""The position scaling of a GGUF file reaches the model, or the file is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from transformers import AutoConfig, LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from batchmill.engine.errors import ModelLoadError
from batchmill.engine.loading.gguf_conversion import converted_folder
from batchmill.engine.models.families import read_model_config
from batchmill.engine.models.model_config import RopeConfig

from ...support.tiny_gguf import write_gguf


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where to write a file, with a model cache beside it."""
    monkeypatch.setenv("BATCHMILL_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "tiny.gguf"


def rope_of(path: Path) -> RopeConfig:
    # Without the weights: a new cache folder would have the CPU kernels compiled again.
    hf_config = AutoConfig.from_pretrained(converted_folder(path))
    return read_model_config(hf_config.to_dict()).layers[0].attention.rope


@pytest.mark.parametrize(
    "metadata",
    [
        {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0},
        {"llama.rope.scaling.factor": 4.0},
        {"llama.rope.scale_linear": 4.0},
    ],
)
def test_linear_scaling_is_taken_over(path: Path, metadata: dict[str, str | float]) -> None:
    write_gguf(path, metadata=metadata)
    rope = rope_of(path)
    assert (rope.rope_type, rope.factor, rope.theta) == ("linear", 4.0, 10000.0)


def test_yarn_is_taken_over(path: Path) -> None:
    write_gguf(
        path,
        metadata={
            "llama.rope.scaling.type": "yarn",
            "llama.rope.scaling.factor": 4.0,
            "llama.rope.scaling.original_context_length": 16,
        },
    )
    rope = rope_of(path)
    assert (rope.rope_type, rope.factor) == ("yarn", 4.0)
    assert rope.original_max_position_embeddings == 16
    assert rope.attention_factor == pytest.approx(0.1 * np.log(4) + 1)


@pytest.mark.parametrize(("factor", "length"), [(8.0, 8192), (32.0, 8192), (8.0, 64)])
def test_the_factors_of_llama_3_are_taken_over(path: Path, factor: float, length: int) -> None:
    values = {
        "rope_theta": 500000.0,
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": length,
    }
    config = LlamaConfig(hidden_size=32, num_attention_heads=4, rope_parameters=values)
    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    factors = 500000.0 ** -(np.arange(4) / 4) / scaled.numpy()
    more = {"rope_freqs.weight": factors.astype(np.float32)}
    write_gguf(path, more=more, rope_freq_base=500000.0)
    rope = rope_of(path)
    assert rope.rope_type == "llama3"
    assert rope.factor == pytest.approx(factor)
    # Several original lengths may give the same factors; the frequencies decide.
    found = {**values, "original_max_position_embeddings": rope.original_max_position_embeddings}
    config.rope_parameters = found
    again, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    assert np.allclose(again.numpy(), scaled.numpy(), rtol=1e-3)


@pytest.mark.parametrize(
    ("metadata", "factors"),
    [
        ({"llama.rope.scaling.type": "dynamic", "llama.rope.scaling.factor": 2.0}, None),
        ({"llama.rope.scaling.type": "yarn"}, None),
        ({}, [1.0, 3.0, 2.0, 7.0]),
    ],
)
def test_other_scaling_is_refused(
    path: Path, metadata: dict[str, str | float], factors: list[float] | None
) -> None:
    more = {} if factors is None else {"rope_freqs.weight": np.array(factors, dtype=np.float32)}
    write_gguf(path, metadata=metadata, more=more)
    with pytest.raises(ModelLoadError, match="use the model's safetensors instead"):
        converted_folder(path)
