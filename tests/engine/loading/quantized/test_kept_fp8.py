"""Checkpoints in eight-bit floats that "fp8" keeps: the stored numbers are those multiplied."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, Ernie4_5Config, PreTrainedConfig

from batchmill.engine.loading.computation import load_computation
from batchmill.engine.loading.load_options import LoadOptions
from batchmill.engine.loading.quantized.formats import read_scheme
from batchmill.engine.loading.weight_loading import load_weights
from batchmill.engine.models.decoder import DecoderModel
from batchmill.engine.models.families import read_model_config
from batchmill.engine.models.weights import (
    DecoderWeights,
    ExpertWeights,
    LayerWeights,
    Matrix,
)
from batchmill.kernels.ops.fp8_linear import Fp8Reference
from batchmill.kernels.ops.fp8_weight import Fp8Weight, quantize_fp8_weight
from batchmill.kernels.reference.expert_linear import Fp8Experts

from ....support.tiny_models import NATIVE, random_model
from ...model_steps import full_logits, largest_error, make_requests, make_runner, run_step
from .oracle import LLAMA, SMALL, make_model, save
from .test_compressed_tensors import SCHEMES
from .test_compressed_tensors import write as write_compressed
from .test_fp8_and_fp4 import STORED
from .test_fp8_and_fp4 import write as write_fp8

#: Of logits whose activations have three bits, in models too small to even it out; with a wrong
#: scale, column or row it would be 1.4.
MOST_ERROR = 0.5
KEPT = ("fp8 with one scale", "fp8 in rows", "fp8 weights alone")


def read(folder: Path, *, in_fp8: bool) -> DecoderWeights:
    values: dict[str, Any] = AutoConfig.from_pretrained(folder).to_dict()
    stored_as = values.get("quantization_config")
    scheme = None if stored_as is None else read_scheme(stored_as)
    config = read_model_config(values)
    return load_weights(folder, config, torch.float32, "cpu", scheme=scheme, in_fp8=in_fp8)


def fp8_model(folder: Path) -> DecoderModel:
    config = read_model_config(AutoConfig.from_pretrained(folder).to_dict())
    weights = read(folder, in_fp8=True)
    return DecoderModel(config, weights, backend="reference", quantization="fp8")


def matrices(weights: DecoderWeights) -> list[Matrix]:
    return [matrix for layer in weights.layers for matrix in layer.matrices]


def largest(folder: Path, package: Any) -> float:
    """Return the largest error of our logits."""
    requests = make_requests([1, 7, 33], LLAMA.vocab_size)
    want = full_logits(package, requests)
    return largest_error(make_runner(fp8_model(folder)), requests, want, [40])


def typical(folder: Path, package: Any) -> float:
    """Return the typical error of our last logits, relative to the spread of the package's."""
    requests = make_requests([33, 12, 40, 27], LLAMA.vocab_size)
    want = torch.stack([logits[-1] for logits in full_logits(package, requests)])
    got = run_step(
        make_runner(fp8_model(folder)),
        [(request, request.num_uncomputed_tokens, True) for request in requests],
    )
    return float((got - want).pow(2).mean().sqrt() / want.std())


def quantize_activations(model: Any) -> None:
    for module in model.modules():
        module.quantization_enabled = True


@pytest.mark.parametrize("name", KEPT)
def test_stored_numbers_are_kept(name: str, tmp_path: Path) -> None:
    write_compressed(tmp_path, *SCHEMES[name])
    kept, dense = read(tmp_path, in_fp8=True), read(tmp_path, in_fp8=False)
    pairs = list(zip(matrices(kept), matrices(dense), strict=True))
    # The settings leave out one matrix, and the head.
    assert [isinstance(each, Fp8Weight) for each, _ in pairs].count(False) == 1
    assert isinstance(kept.layers[1].feed_forward.matrices[1], Tensor)
    for ours, unpacked in pairs:
        assert isinstance(unpacked, Tensor)
        own = ours.dense() if isinstance(ours, Fp8Weight) else ours
        assert torch.equal(dense_of(own), unpacked)
    assert isinstance(kept.head, Tensor)
    output = kept.layers[0].output
    assert isinstance(output, Fp8Weight)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        stored = file.get_tensor("model.layers.0.self_attn.o_proj.weight")
    assert torch.equal(output.values.view(torch.uint8), stored.view(torch.uint8))


def test_logits_are_near_those_of_the_package_with_its_activations(tmp_path: Path) -> None:
    package = write_compressed(tmp_path, *SCHEMES["fp8 in rows"])
    assert largest(tmp_path, package) > 0.1  # without its activations
    quantize_activations(package)
    assert largest(tmp_path, package) <= 1e-4


@pytest.mark.parametrize("name", ["fp8 with one scale", "fp8 weights alone"])
def test_static_scales_of_activations_give_way_to_those_of_rows(name: str, tmp_path: Path) -> None:
    package = write_compressed(tmp_path, *SCHEMES[name])
    assert 1e-4 < typical(tmp_path, package) < MOST_ERROR


@pytest.mark.parametrize("name", [each for each in STORED if "e4m3" in each])
def test_formats_of_others(name: str, tmp_path: Path) -> None:
    package = write_fp8(tmp_path, name)
    kept, dense = read(tmp_path, in_fp8=True), read(tmp_path, in_fp8=False)
    num_kept = 0
    for ours, unpacked in zip(matrices(kept), matrices(dense), strict=True):
        assert isinstance(unpacked, Tensor)
        if isinstance(ours, Fp8Weight):
            num_kept += 1
            want = quantize_fp8_weight(unpacked).dense() if "blocks" in name else unpacked
            assert torch.equal(ours.dense(), want)
    assert num_kept > 0
    assert typical(tmp_path, package) < MOST_ERROR


def test_weights_in_other_formats_beside_fp8_are_quantized(tmp_path: Path) -> None:
    write_compressed(tmp_path, *SCHEMES["several formats"])
    kept, dense = read(tmp_path, in_fp8=True), read(tmp_path, in_fp8=False)
    for ours, unpacked in zip(kept.layers, dense.layers, strict=True):
        assert isinstance(ours.qkv, Fp8Weight)
        assert torch.equal(ours.qkv.dense(), dense_of(unpacked.qkv))
        gate_up, want = ours.feed_forward.matrices[0], unpacked.feed_forward.matrices[0]
        assert isinstance(gate_up, Fp8Weight)
        assert torch.equal(gate_up.dense(), quantize_fp8_weight(dense_of(want)).dense())


@pytest.mark.parametrize("left_out", ["", "mlp.experts.1.down_proj", "mlp.experts."])
@pytest.mark.parametrize("scales", ["of rows", "of the whole weight"])
def test_experts_are_kept_and_those_that_are_left_out_stay_dense(
    scales: str, left_out: str, tmp_path: Path
) -> None:
    hf_model = random_model(NATIVE["Qwen3-MoE"], tmp_path)
    path = tmp_path / "model.safetensors"
    tensors = load_file(path)
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        if left_out and left_out in name:
            continue
        weight = tensors[name].float()
        factors = weight.abs().amax(1, keepdim=True) / 448
        factors = factors.amax() if scales == "of the whole weight" else factors
        tensors[name] = (weight / factors).to(torch.float8_e4m3fn)
        tensors[name.replace(".weight", ".weight_scale")] = factors
    save_file(tensors, path, metadata={"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8"}
    (tmp_path / "config.json").write_text(json.dumps(config))

    kept, dense = read(tmp_path, in_fp8=True), read(tmp_path, in_fp8=False)
    for ours, unpacked in zip(kept.layers, dense.layers, strict=True):
        network, want = ours.feed_forward, unpacked.feed_forward
        assert isinstance(network, ExpertWeights)
        assert isinstance(want, ExpertWeights)
        assert isinstance(network.gate_up, Fp8Experts) == (left_out != "mlp.experts.")
        assert isinstance(network.down, Fp8Experts) == (left_out == "")
        for mine, each in zip(network.matrices, want.matrices, strict=True):
            own = mine.dense() if isinstance(mine, Fp8Weight) else mine
            assert torch.equal(dense_of(own), dense_of(each))
        assert torch.equal(network.router, want.router)
    requests = make_requests([33, 12, 40, 27], config["vocab_size"])
    want_logits = torch.stack([logits[-1] for logits in full_logits(hf_model, requests)])
    steps = [(request, request.num_uncomputed_tokens, True) for request in requests]
    got = run_step(make_runner(fp8_model(tmp_path)), steps)
    # Of the typical row: a token may get other experts.
    assert (got - want_logits).pow(2).mean(1).median().sqrt() / want_logits.std() < MOST_ERROR


def dense_of(matrix: Matrix) -> Tensor:
    assert isinstance(matrix, Tensor)
    return matrix


def test_a_matrix_of_which_a_part_is_left_out_stays_dense(tmp_path: Path) -> None:
    left_out = ("lm_head", "model.layers.0.self_attn.k_proj")
    package = write_compressed(tmp_path, *SCHEMES["fp8 in rows"], ignore=left_out)
    kept, dense = (read(tmp_path, in_fp8=each).layers[0] for each in (True, False))
    assert torch.equal(dense_of(kept.qkv), dense_of(dense.qkv))
    assert isinstance(kept.output, Fp8Weight)
    model = fp8_model(tmp_path)
    assert not isinstance(model._layers[0].qkv, Fp8Reference)
    assert isinstance(model._layers[1].qkv, Fp8Reference)
    quantize_activations(package)
    assert typical(tmp_path, package) < MOST_ERROR


@pytest.mark.parametrize("config", [LLAMA, Ernie4_5Config(**SMALL)], ids=["Llama", "ERNIE 4.5"])
def test_dense_weights_quantized_as_they_are_read_are_those_quantized_later(
    config: PreTrainedConfig, tmp_path: Path
) -> None:
    save(tmp_path, config, make_model(config).state_dict(), None)
    kept, dense = read(tmp_path, in_fp8=True), read(tmp_path, in_fp8=False)
    for ours, unquantized in zip(matrices(kept), matrices(dense), strict=True):
        want = quantize_fp8_weight(dense_of(unquantized))
        assert isinstance(ours, Fp8Weight)
        assert torch.equal(ours.values.view(torch.uint8), want.values.view(torch.uint8))
        assert torch.equal(ours.scales, want.scales)


def test_moved_layers_stay_in_fp8(tmp_path: Path) -> None:
    write_compressed(tmp_path, *SCHEMES["fp8 in rows"])
    (layer, *_) = read(tmp_path, in_fp8=True).layers
    moved: LayerWeights = layer.to(torch.device("cpu"))
    assert isinstance(moved.qkv, Fp8Weight)


def test_kept_numbers_are_part_of_the_identity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_compressed(tmp_path, *SCHEMES["fp8 in rows"])
    hf_config = AutoConfig.from_pretrained(tmp_path)
    monkeypatch.setattr("batchmill.engine.loading.computation._load_decoder", lambda *args: None)
    options = LoadOptions(
        dtype=torch.float32,
        device=torch.device("cpu"),
        quantization=None,
        model_impl="auto",
        max_model_len=None,
        linear=None,
        ranks=None,
    )
    plain, kept = (
        load_computation(tmp_path, hf_config.to_dict(), hf_config, each)[1]
        for each in (options, replace(options, quantization="fp8"))
    )
    assert "float-quantized" in plain
    assert kept.endswith(" kept in fp8")
