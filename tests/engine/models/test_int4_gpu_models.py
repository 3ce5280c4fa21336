"""4-bit checkpoints stay packed on a GPU. Without one, Triton's interpreter runs the kernels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from batchmill.engine.errors import ConfigError, UnsupportedModelError
from batchmill.engine.loading.computation import describe_computation
from batchmill.engine.loading.loading import load_model
from batchmill.engine.loading.quantized.formats import read_scheme
from batchmill.engine.loading.weight_loading import load_weights
from batchmill.engine.models.decoder import DecoderModel
from batchmill.engine.models.families import read_model_config
from batchmill.engine.models.model_config import ModelConfig
from batchmill.kernels.ops.grouped_weight import GroupedWeight
from batchmill.kernels.ops.int4_gpu_linear import Int4GpuLinear

from ...support.tiny_models import NATIVE, random_model
from ..loading.quantized.test_compressed_tensors import SCHEMES, write
from .test_decoder_triton import logits_of


@pytest.fixture(autouse=True)
def _interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # Triton looks again when it first launches


def config_of(folder: Path) -> tuple[ModelConfig, dict[str, Any]]:
    values: dict[str, Any] = AutoConfig.from_pretrained(folder).to_dict()
    return read_model_config(values), values["quantization_config"]


@pytest.mark.parametrize("name", ["int4 in groups", "int4 in groups, asymmetric"])
def test_logits_are_those_of_the_unpacked_weights(name: str, tmp_path: Path) -> None:
    write(tmp_path, *SCHEMES[name])
    config, settings = config_of(tmp_path)
    logits, num_packed = [], 0
    for keeps_groups in (True, False):
        weights = load_weights(
            tmp_path,
            config,
            torch.float16,
            "cpu",
            scheme=read_scheme(settings),
            keeps_groups=keeps_groups,
        )
        matrices = [matrix for layer in weights.layers for matrix in layer.matrices]
        num_packed += sum(isinstance(matrix, GroupedWeight) for matrix in matrices)
        model = DecoderModel(
            config, weights, backend="triton", quantization="int4" if keeps_groups else None
        )
        assert isinstance(model._layers[0].output, Int4GpuLinear) == keeps_groups
        logits.append(torch.cat(logits_of(model)))
    assert num_packed == 7  # of 8: the settings leave out one
    got, want = logits
    # The same weights: only sums are rounded differently.
    torch.testing.assert_close(got, want, atol=0.01 * want.abs().max().item(), rtol=0)


def test_tokens_of_a_gpu_are_not_resumed_on_a_cpu(tmp_path: Path) -> None:
    write(tmp_path, *SCHEMES["int4 in groups"])
    config, _ = config_of(tmp_path)
    on_gpu, on_cpu = (
        describe_computation(config, "int4", torch.device(name)) for name in ("cuda", "cpu")
    )
    assert on_gpu != on_cpu


@pytest.mark.parametrize(
    ("name", "dtype", "message"),
    [
        ("Llama", "bfloat16", "this model's weights are dense: name a checkpoint in compressed-"),
        ("Mixtral", "bfloat16", "MixtralForCausalLM is a mixture of experts, which int4 on a GPU"),
        ("Llama", "float32", "whose activations on a GPU are bfloat16 or float16, but dtype is"),
    ],
)
def test_what_a_gpu_does_not_keep_packed_is_refused(
    name: str, dtype: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random_model(NATIVE[name], tmp_path)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises((ConfigError, UnsupportedModelError), match=message):
        load_model(str(tmp_path), dtype=dtype, device="cuda", quantization="int4")
