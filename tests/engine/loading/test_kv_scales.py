"""Scales of an eight-bit KV cache in a checkpoint: read, used, or refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationConfig,
    apply_quantization_config,
)
from torch import Tensor
from transformers import PreTrainedModel

from batchmill.engine import Engine, EngineConfig
from batchmill.engine.errors import ConfigError
from batchmill.engine.loading.loading import LoadedModel, load_model
from batchmill.engine.models.decoder import DecoderModel
from batchmill.engine.models.kv_scales import KvScales, check_kv_scales
from batchmill.kernels.ops.linear import dense_linear

from ...support.tiny_models import ALL, random_model
from ..models.test_decoder_triton import logits_of
from .quantized.oracle import (
    LLAMA,
    change_config,
    change_settings,
    change_tensors,
    make_model,
    save,
)

SCHEME = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "tensor", "dynamic": False}
SETTINGS: dict[str, Any] = {
    "quant_method": "compressed-tensors",
    "config_groups": {},
    "kv_cache_scheme": SCHEME,
}
#: Keys and values grow by these: far beyond 448, the largest eight-bit number.
GROWTH = {"k": 4096.0, "v": 2048.0}
SCALES = {
    f"model.layers.{layer}.self_attn.{kind}_scale": torch.tensor([growth / 32 * (layer + 1)])
    for layer in range(2)
    for kind, growth in GROWTH.items()
}


def write(folder: Path, scales: dict[str, Tensor]) -> PreTrainedModel:
    """Save a model whose keys and values exceed eight bits; its other weights make up for it."""
    model = make_model()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "k_proj" in name or "v_proj" in name:
                weight.mul_(GROWTH["k" if "k_proj" in name else "v"])
            if "q_proj" in name or "o_proj" in name:
                weight.div_(GROWTH["k" if "q_proj" in name else "v"])
    save(folder, LLAMA, {**model.state_dict(), **scales}, SETTINGS)
    return model


def load(folder: Path) -> LoadedModel:
    # With products of its own no layer is computed by the C++ layers, which read no such cache.
    return load_model(str(folder), dtype="float32", device="cpu", linear=dense_linear)


def error_of_eight_bits(folder: Path) -> float:
    """Return how far logits with an eight-bit cache are from those with a cache in float32."""
    model = load(folder).model
    assert isinstance(model, DecoderModel)
    full, eight = logits_of(model), logits_of(model, torch.float8_e4m3fn)
    spread = full[0].std().item()
    errors = [(a - b).abs().mean().item() for a, b in zip(full, eight, strict=True)]
    return max(errors) / spread


def test_an_eight_bit_cache_is_scaled_layer_by_layer(tmp_path: Path) -> None:
    write(tmp_path, SCALES)
    loaded = load(tmp_path)
    assert loaded.kv_scales == KvScales((128.0, 256.0), (64.0, 128.0))
    scaled = error_of_eight_bits(tmp_path)
    write(tmp_path, {})
    assert load(tmp_path).kv_scales is None
    # A number is off by up to 2**-4 of itself; without scales most are cut at 448.
    assert scaled < 0.2 < error_of_eight_bits(tmp_path)


def test_scales_are_found_under_the_names_of_compressed_tensors(tmp_path: Path) -> None:
    model = make_model()
    scheme = QuantizationArgs(**SCHEME)
    apply_quantization_config(model, QuantizationConfig(config_groups={}, kv_cache_scheme=scheme))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("_scale"):
                weight.fill_(0.5)
    save(tmp_path, LLAMA, model.state_dict(), SETTINGS)
    assert load(tmp_path).kv_scales == KvScales((0.5, 0.5), (0.5, 0.5))


@pytest.mark.parametrize(
    "names",
    [
        ("k_proj.k_scale", "v_proj.v_scale"),
        ("k_proj.output_scale", "v_proj.output_scale"),
        ("qkv_proj.k_scale", "qkv_proj.v_scale"),
    ],
    ids=["modelopt", "before-compressed-tensors", "joined"],
)
def test_scales_are_found_under_other_names(names: tuple[str, str], tmp_path: Path) -> None:
    stored = {
        f"model.layers.{layer}.self_attn.{name}": torch.tensor(2.0)
        for layer in range(2)
        for name in names
    }
    write(tmp_path, stored)
    assert load(tmp_path).kv_scales == KvScales((2.0, 2.0), (2.0, 2.0))


FIRST = "model.layers.0.self_attn.k_scale"


@pytest.mark.parametrize(
    ("tensors", "settings", "problem"),
    [
        ({FIRST: torch.ones(2)}, {}, "k_scale is not one number above 0"),
        ({FIRST: torch.tensor([-1.0])}, {}, "k_scale is not one number above 0"),
        ({FIRST: None}, {}, "layer 0 lacks them"),
        ({FIRST.replace("scale", "zero_point"): torch.ones(1)}, {}, "have zero points"),
        ({}, {"kv_cache_scheme": {**SCHEME, "type": "int"}}, "for 8 bits of type 'int'"),
    ],
    ids=["by-head", "negative", "missing", "asymmetric", "integers"],
)
def test_scales_that_cannot_be_used_are_refused_for_an_eight_bit_cache_only(
    tensors: dict[str, Tensor | None], settings: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    write(tmp_path, SCALES)
    change_tensors(tmp_path, tensors)
    change_settings(tmp_path, **settings)
    scales = load(tmp_path).kv_scales
    assert scales is not None
    with pytest.raises(ConfigError, match=rf"kv_cache_dtype is 'fp8'.*{problem}.*'auto'"):
        check_kv_scales("fp8", scales)
    config = EngineConfig(model=str(tmp_path), dtype="float32", device="cpu", max_model_len=32)
    assert Engine(config, loaded=load_model(str(tmp_path), dtype="float32", device="cpu"))


def test_the_log_says_whether_scales_are_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, SCALES)
    scales = load(tmp_path).kv_scales
    with caplog.at_level("INFO", logger="batchmill.engine"):
        check_kv_scales("auto", scales)
        check_kv_scales("fp8", scales)
    messages = [each.message for each in caplog.records]
    first, second = (each for each in messages if "quantized KV cache" in each)
    assert "only kv_cache_dtype 'fp8' uses, on a GPU" in first
    assert "are used" in second


def test_scales_do_not_change_the_identity_of_a_cache_in_the_dtype(tmp_path: Path) -> None:
    write(tmp_path, SCALES)
    config = EngineConfig(model=str(tmp_path), dtype="float32", device="cpu", max_model_len=32)
    loaded = load_model(str(tmp_path), dtype="float32", device="cpu")
    assert Engine(config, loaded=loaded).identity == loaded.identity


def test_scales_of_a_dense_checkpoint_are_read(tmp_path: Path) -> None:
    write(tmp_path, SCALES)
    change_config(tmp_path, quantization_config=None)
    assert load(tmp_path).kv_scales == KvScales((128.0, 256.0), (64.0, 128.0))


@pytest.mark.parametrize("name", ["Arcee", "Llama"])
def test_scales_are_refused_by_name_if_transformers_computes_the_model(
    name: str, tmp_path: Path
) -> None:
    random_model(ALL[name], tmp_path)
    change_tensors(tmp_path, SCALES)
    loaded = load_model(str(tmp_path), dtype="float32", device="cpu", model_impl="transformers")
    problem = rf"this {name}ForCausalLM is computed by transformers, which does not use them here"
    with pytest.raises(ConfigError, match=rf"kv_cache_dtype is 'fp8'.*{problem}.*'auto'"):
        check_kv_scales("fp8", loaded.kv_scales)
    check_kv_scales("auto", loaded.kv_scales)


def test_a_model_without_scales_that_transformers_computes_has_none(tmp_path: Path) -> None:
    random_model(ALL["Arcee"], tmp_path)
    assert load_model(str(tmp_path), dtype="float32", device="cpu").kv_scales is None
