"""Checkpoints of 4 bits that "int4" keeps: the stored integers are those that are multiplied."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor
from transformers import AutoConfig, Ernie4_5Config

from batchmill.engine.errors import UnsupportedModelError
from batchmill.engine.loading.loading import load_model
from batchmill.engine.loading.quantized.checkpoint import Checkpoint
from batchmill.engine.loading.quantized.formats import read_scheme
from batchmill.engine.loading.quantized.scheme import Scheme
from batchmill.engine.loading.weight_loading import load_weights
from batchmill.engine.models.families import read_model_config
from batchmill.engine.models.weights import DecoderWeights, Matrix
from batchmill.kernels.ops.grouped_weight import GroupedWeight

from ...model_steps import full_logits, largest_error, make_requests, make_runner
from .oracle import LLAMA, SMALL, change_tensors, load, make_model, save
from .test_compressed_tensors import SCHEMES
from .test_compressed_tensors import write as write_compressed
from .test_recorded_layouts import AWQ, GPTQ


def config_of(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = AutoConfig.from_pretrained(folder).to_dict()
    return values


def scheme_of(folder: Path) -> Scheme:
    return read_scheme(config_of(folder)["quantization_config"])


def read(folder: Path, *, keeps_groups: bool) -> DecoderWeights:
    return load_weights(
        folder,
        read_model_config(config_of(folder)),
        torch.float32,
        "cpu",
        scheme=scheme_of(folder),
        keeps_groups=keeps_groups,
    )


def matrices(weights: DecoderWeights) -> list[Matrix]:
    return [matrix for layer in weights.layers for matrix in layer.matrices]


@pytest.mark.parametrize("name", ["int4 in groups", "int4 in groups, asymmetric"])
def test_integers_of_compressed_tensors_are_kept(name: str, tmp_path: Path) -> None:
    dense_model = write_compressed(tmp_path, *SCHEMES[name])
    kept, dense = read(tmp_path, keeps_groups=True), read(tmp_path, keeps_groups=False)
    pairs = list(zip(matrices(kept), matrices(dense), strict=True))
    # The settings leave out one matrix, and the head.
    assert [isinstance(integers, GroupedWeight) for integers, _ in pairs].count(False) == 1
    assert kept.has_stored_groups
    assert isinstance(kept.head, Tensor)
    for integers, unpacked in pairs:
        if isinstance(integers, GroupedWeight):
            assert (integers.zeros is None) == (name == "int4 in groups")
            integers = integers.dense()
        assert isinstance(unpacked, Tensor)
        assert isinstance(integers, Tensor)
        assert torch.equal(integers, unpacked)
    requests = make_requests([7], LLAMA.vocab_size)
    want = full_logits(dense_model, requests)
    loaded = load(tmp_path, quantization="int4")
    # Activations are rounded to 1/127 of the largest of 32, and the head to 8 bits.
    error = largest_error(make_runner(loaded.model), requests, want, [40])
    assert 1e-6 < error < 0.1 * want[0].abs().max().item()
    assert loaded.identity != load(tmp_path).identity


def test_kept_heads_are_reordered_as_dense_ones(tmp_path: Path) -> None:
    ernie = Ernie4_5Config(**SMALL, tie_word_embeddings=False)
    write_compressed(tmp_path, *SCHEMES["int4 in groups"], config=ernie)
    kept, unpacked = (read(tmp_path, keeps_groups=keeps).layers[1] for keeps in (True, False))
    assert isinstance(kept.qkv, GroupedWeight)
    assert isinstance(unpacked.qkv, Tensor)
    assert torch.equal(kept.qkv.dense(), unpacked.qkv)


def test_parts_in_several_formats_are_joined_dense(tmp_path: Path) -> None:
    write_compressed(tmp_path, *SCHEMES["int4 in groups"])
    stored = "model.layers.0.self_attn.k_proj"
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        size = file.get_tensor(f"{stored}.weight_shape").tolist()
    dense = torch.randn(size)
    parts = ("weight_packed", "weight_scale", "weight_shape")
    change_tensors(tmp_path, {f"{stored}.{part}": None for part in parts})
    change_tensors(tmp_path, {f"{stored}.weight": dense})
    kept, unpacked = (read(tmp_path, keeps_groups=keeps).layers[0] for keeps in (True, False))
    assert isinstance(kept.output, GroupedWeight)
    assert isinstance(kept.qkv, Tensor)
    assert isinstance(unpacked.qkv, Tensor)
    assert torch.equal(kept.qkv, unpacked.qkv)


def random_words(*shape: int) -> Tensor:
    return torch.randint(-(2**31), 2**31, shape, dtype=torch.int32)


@pytest.mark.parametrize("name", ["gptq", "awq"])
def test_groups_of_gptq_and_awq_are_kept_if_their_inputs_are_neighbours(
    name: str, tmp_path: Path
) -> None:
    tensors = dict(make_model().state_dict())
    index = torch.arange(64, dtype=torch.int32) // 32
    for place in ("q", "k"):
        prefix = f"model.layers.0.self_attn.{place}_proj"
        num_outputs = len(tensors.pop(f"{prefix}.weight"))
        shape = (8, num_outputs) if name == "gptq" else (64, num_outputs // 8)
        tensors |= {
            f"{prefix}.qweight": random_words(*shape),
            f"{prefix}.qzeros": random_words(2, num_outputs // 8),
            f"{prefix}.scales": torch.rand(2, num_outputs).half(),
        }
        if name == "gptq":
            tensors[f"{prefix}.g_idx"] = index if place == "q" else index.flip(0)
    save(tmp_path, LLAMA, tensors, {"gptq": GPTQ, "awq": AWQ}[name] | {"group_size": 32})
    checkpoint = Checkpoint(tmp_path, scheme_of(tmp_path))
    unpacked = {
        key: value.clone()
        for key, value, _ in checkpoint.stream(torch.float32)
        if isinstance(value, Tensor)
    }
    kept = {
        key.removeprefix("model.layers.0.self_attn."): value
        for key, value, _ in checkpoint.stream(torch.float32, keeps_groups=True)
        if isinstance(value, GroupedWeight)
    }
    reordered = {"k_proj.weight"} if name == "gptq" else set()
    assert kept.keys() == {"q_proj.weight", "k_proj.weight"} - reordered
    for key, value in kept.items():
        assert torch.equal(value.dense(), unpacked[f"model.layers.0.self_attn.{key}"])


def test_a_model_without_integers_of_4_bits_is_refused_by_name(tmp_path: Path) -> None:
    write_compressed(tmp_path, *SCHEMES["fp8 with one scale"])
    with pytest.raises(UnsupportedModelError, match=r"'int4'.*compressed-tensors without integers"):
        load_model(str(tmp_path), dtype="float32", device="cpu", quantization="int4")
