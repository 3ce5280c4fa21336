"""Models with fp8 weights, by the reference on a CPU: near the unquantized ones, refused by name.

The reference is what a GPU computes but for the order and the width of sums; see docs/gpu.md.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Qwen2MoeConfig

from batchmill.engine import EngineConfig, SamplingParams
from batchmill.engine.config import QUANTIZATIONS
from batchmill.engine.errors import ConfigError, UnsupportedModelError
from batchmill.engine.loading import computation
from batchmill.engine.loading.fingerprint import model_identity
from batchmill.engine.loading.loading import LoadedModel, load_model
from batchmill.engine.loading.weight_loading import load_weights
from batchmill.engine.models.decoder import DecoderModel
from batchmill.engine.models.fp8_weights import (
    check_fp8_device,
    check_fp8_model,
    fp8_remedy_bytes,
    fp8_weights_bytes,
    layer_bytes,
)
from batchmill.engine.models.model_config import ModelConfig
from batchmill.engine.models.weights import ExpertWeights, allocated, weights_bytes
from batchmill.kernels.ops.fp8_weight import Fp8Weight
from batchmill.kernels.ops.linear import dense_linear

from ...support.tiny_models import NATIVE, OTHERS, random_model
from ..greedy_checks import WAYS, alone
from ..model_steps import full_logits, make_requests, make_runner, run_step
from ..tiny_model import POISON, run, save_model, tiny_engine

GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
#: Models with a matrix whose size is not a multiple of 16; those of experts may have any.
REFUSED = {
    "Llama, every bias, llama3 RoPE, explicit head_dim": "num_heads . head_dim 120",
    "Qwen2-MoE, shared expert": "experts.shared_size 40",
}
GATED = "Qwen2-MoE, shared expert of another size"
CONFIGS = NATIVE | {
    GATED: Qwen2MoeConfig(
        **{**NATIVE["Qwen2-MoE, shared expert"].to_dict(), "shared_expert_intermediate_size": 48}
    )
}
COMPUTED = [name for name in CONFIGS if name not in REFUSED]


def config_in(folder: Path) -> ModelConfig:
    loaded = load_model(str(folder), dtype="float32", device="cpu", model_impl="native")
    assert isinstance(loaded.config, ModelConfig)
    return loaded.config


def reference_model(folder: Path, dtype: torch.dtype = torch.float32) -> LoadedModel:
    """A folder's model with fp8 weights, in plain torch."""
    loaded = load_model(str(folder), dtype="float32", device="cpu", model_impl="native")
    assert isinstance(loaded.config, ModelConfig)
    weights = load_weights(folder, loaded.config, dtype, "cpu")
    model = DecoderModel(loaded.config, weights, backend="reference", quantization="fp8")
    return replace(loaded, model=model)


@pytest.mark.parametrize("name", COMPUTED)
def test_logits_of_every_family_stay_near_the_unquantized_ones(name: str, tmp_path: Path) -> None:
    hf_model = random_model(CONFIGS[name], tmp_path)
    loaded = reference_model(tmp_path)
    assert isinstance(loaded.config, ModelConfig)
    requests = make_requests([33, 12, 40, 27], loaded.config.vocab_size)
    want = torch.stack([logits[-1] for logits in full_logits(hf_model, requests)])
    runner = make_runner(loaded.model)
    run_step(runner, [(request, 10, False) for request in requests])
    got = run_step(runner, [(request, request.num_uncomputed_tokens, True) for request in requests])
    of_rows = (got - want).pow(2).mean(1)
    # A token whose scores of experts are near ties may get others: up to 0.9 for one in four.
    mean = of_rows.mean() if loaded.config.experts is None else of_rows.median()
    error = mean.sqrt() / want.std()
    # Numbers of three bits, and no row of more than 112 to even it out: 0.07 to 0.34, measured.
    # With a wrong scale, column or row the two would have nothing in common, which is 1.4.
    assert 0 < error < (0.35 if loaded.config.experts is None else 0.45)


@pytest.mark.parametrize("name", COMPUTED)
def test_quantizing_while_reading_gives_what_quantizing_later_gives(
    name: str, tmp_path: Path
) -> None:
    random_model(CONFIGS[name], tmp_path)
    later = reference_model(tmp_path).model
    config = later.config
    assert isinstance(config, ModelConfig)
    read = load_weights(tmp_path, config, torch.float32, CPU, layer_device=CPU, in_fp8=True)
    matrices = [matrix for layer in read.layers for matrix in layer.matrices]
    assert matrices
    assert all(isinstance(matrix, Fp8Weight) for matrix in matrices)
    at_once = DecoderModel(config, read, backend="reference", quantization="fp8")
    logits = []
    for model in (later, at_once):
        requests = make_requests([33, 12], config.vocab_size)
        steps = [(request, request.num_uncomputed_tokens, True) for request in requests]
        logits.append(run_step(make_runner(model), steps))
    assert torch.equal(*logits)


def test_the_layers_matrices_are_quantized_and_the_head_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random_model(NATIVE["Qwen3"], tmp_path)
    made: list[Tensor] = []
    monkeypatch.setattr(
        "batchmill.kernels.ops.fp8_linear._check_weight", lambda weight: made.append(weight)
    )
    model = reference_model(tmp_path).model
    config = model.config
    assert isinstance(config, ModelConfig)
    assert len(made) == 4 * config.num_layers
    x = torch.randn(2, config.hidden_size)
    head = allocated(load_weights(tmp_path, config, torch.float32, "cpu").head)
    torch.testing.assert_close(model._head(x), x @ head.T)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["Llama", "Qwen3", "Qwen3-MoE"])
def test_tokens_do_not_depend_on_how_they_are_computed(name: str, tmp_path: Path) -> None:
    random_model(NATIVE[name], tmp_path)
    loaded = reference_model(tmp_path)
    tokens = alone(tmp_path, loaded, [])
    assert [
        way for way, compute in WAYS.items() if compute(tmp_path, loaded, tokens) != tokens
    ] == []


def test_a_request_with_nan_fails_and_does_not_change_the_others(tmp_path: Path) -> None:
    save_model(tmp_path)
    loaded = reference_model(tmp_path)
    good = {f"g{i}": [7 * i + j for j in range(5 + i)] for i in range(6)}
    want = tiny_engine(loaded).generate(list(good.values()), GREEDY)
    engine = tiny_engine(loaded)
    for name, prompt in good.items():
        engine.add_request(name, prompt, GREEDY)
    engine.add_request("bad", [1, POISON, 2], GREEDY)
    last = {name: outputs[-1] for name, outputs in run(engine).items()}
    failure = last.pop("bad").error
    assert failure is not None
    assert failure.code == "numerical_error"
    assert [last[name].token_ids for name in good] == [output.token_ids for output in want]


@pytest.mark.parametrize("name", COMPUTED)
def test_weights_take_the_predicted_bytes(name: str, tmp_path: Path) -> None:
    random_model(CONFIGS[name], tmp_path)
    config = config_in(tmp_path)
    weights = load_weights(tmp_path, config, torch.bfloat16, CPU, layer_device=CPU, in_fp8=True)
    rest = [weights.embedding, weights.final_norm]
    rest += [] if config.tie_word_embeddings else [allocated(weights.head)]
    total = sum(each.nbytes for each in rest)
    for layer in weights.layers:
        for matrix in layer.matrices:
            assert isinstance(matrix, Fp8Weight)
            total += matrix.values.nbytes + matrix.scales.nbytes
        network = layer.feed_forward
        biases = (layer.qkv_bias, layer.output_bias, network.gate_up_bias, network.down_bias)
        tensors = [*layer.norms, *biases, layer.sinks]
        if isinstance(network, ExpertWeights):
            tensors += [network.router, network.router_bias, network.correction]
            tensors += [network.shared_gate]
        total += sum(each.nbytes for each in tensors if each is not None)
    assert fp8_weights_bytes(config, torch.bfloat16) == total
    assert total < weights_bytes(config, torch.bfloat16)
    assert fp8_remedy_bytes(config, torch.bfloat16) == total
    assert fp8_remedy_bytes(config, torch.float32) is None
    assert len(layer_bytes(config, torch.bfloat16)) == config.num_layers


def test_layers_on_the_host_move_to_the_device_one_by_one(tmp_path: Path) -> None:
    random_model(NATIVE["Qwen3"], tmp_path)
    config = config_in(tmp_path)
    weights = load_weights(tmp_path, config, torch.bfloat16, "meta", layer_device="cpu")
    assert {weights.embedding.device.type, weights.head.device.type} == {"meta"}
    (first, *_) = weights.layers
    assert {each.device.type for each in (*first.matrices, *first.norms)} == {"cpu"}
    moved = first.to(torch.device("meta"))
    assert {each.device.type for each in (*moved.matrices, *moved.norms)} == {"meta"}
    assert [each.shape for each in moved.matrices] == [each.shape for each in first.matrices]
    stayed = first.to(CPU)
    assert all(a is b for a, b in zip(stayed.matrices, first.matrices, strict=True))
    model = DecoderModel(config, weights, backend="triton", quantization="fp8")
    assert model.is_capturable


@pytest.mark.parametrize("place", ["device", "host"])
def test_weights_that_do_not_fit_are_refused_before_they_are_read(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random_model(NATIVE["Llama"], tmp_path)
    config = config_in(tmp_path)
    layers = layer_bytes(config, torch.bfloat16)
    needed = {
        "device": fp8_weights_bytes(config, torch.bfloat16) + max(layers),
        "host": max(layers),
    }
    lacking = needed | {place: needed[place] - 1}
    free = {"meta": lacking["device"], "cpu": lacking["host"]}
    monkeypatch.setattr(computation, "free_memory_bytes", lambda device: free[device.type])
    arguments: Any = (tmp_path, config, torch.bfloat16, torch.device("meta"), "fp8")
    where = "meta has only" if place == "device" else r"this host \(or its container\)"
    with pytest.raises(ConfigError, match=f"the weights need .* GiB in bfloat16, but {where}"):
        computation.read_weights(*arguments)
    free |= {"meta": needed["device"], "cpu": needed["host"]}
    read = computation.read_weights(*arguments)
    assert {each.device.type for layer in read.layers for each in layer.matrices} == {"meta"}
    assert {each.device.type for layer in read.layers for each in layer.norms} == {"cpu"}


def test_fp8_is_named_as_a_remedy_only_if_it_would_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random_model(NATIVE["Llama"], tmp_path)
    config = config_in(tmp_path)
    layers = layer_bytes(config, torch.bfloat16)
    needed = fp8_weights_bytes(config, torch.bfloat16) + max(layers)
    assert needed < weights_bytes(config, torch.bfloat16)
    for gpu, host, is_named in (
        (needed, max(layers), True),
        (needed - 1, max(layers), False),
        (needed, max(layers) - 1, False),
    ):
        free = {"cuda": gpu, "cpu": host}
        monkeypatch.setattr(computation, "free_memory_bytes", lambda device, f=free: f[device.type])
        with pytest.raises(ConfigError, match="the weights need") as caught:
            computation.read_weights(tmp_path, config, torch.bfloat16, GPU, None)
        assert ("quantization 'fp8'" in str(caught.value)) == is_named


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_without_fp8_support_is_refused_by_name(name: str, tmp_path: Path) -> None:
    random_model(NATIVE[name], tmp_path)
    config = config_in(tmp_path)
    with pytest.raises(UnsupportedModelError, match=f"{REFUSED[name]}.*leave quantization out"):
        check_fp8_model(config)
    assert fp8_remedy_bytes(config, torch.bfloat16) is None
    with pytest.raises(UnsupportedModelError, match=REFUSED[name]):
        reference_model(tmp_path)


def test_cpus_older_gpus_and_other_dtypes_are_refused_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random_model(NATIVE["Llama"], tmp_path)
    with pytest.raises(
        ConfigError, match=r"only CUDA GPUs compute, but the device is cpu: .* to 'int8'"
    ):
        load_model(str(tmp_path), device="cpu", quantization="fp8")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    with pytest.raises(
        ConfigError, match=r"compute capability 8\.9 or later, but this GPU has 8\.6"
    ):
        check_fp8_device(GPU, "bfloat16")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 9))
    with pytest.raises(ConfigError, match=r"dtype is 'float16': set dtype to 'bfloat16'"):
        check_fp8_device(GPU, "float16")
    check_fp8_device(GPU, "bfloat16")
    monkeypatch.setattr(torch, "__version__", "2.11.0+cu130")
    with pytest.raises(ConfigError, match=r"8\.9 products of torch 2\.11\.0.*install torch 2\.12"):
        check_fp8_device(GPU, "bfloat16")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    check_fp8_device(GPU, "bfloat16")


@pytest.mark.parametrize(
    ("name", "model_impl", "error"),
    [("Llama", "transformers", ConfigError), ("GPT-2", "auto", UnsupportedModelError)],
)
def test_transformers_does_not_compute_fp8(
    name: str,
    model_impl: str,
    error: type[Exception],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    random_model((NATIVE | OTHERS)[name], tmp_path)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    with pytest.raises(error, match=r"'?fp8'?.*leave quantization out"):
        load_model(str(tmp_path), device="cuda", quantization="fp8", model_impl=model_impl)


def test_another_quantization_is_another_identity(tmp_path: Path) -> None:
    random_model(NATIVE["Llama"], tmp_path)
    config = config_in(tmp_path)
    identities = {
        model_identity(tmp_path, computation.describe_computation(config, each), torch.bfloat16)
        for each in (None, *QUANTIZATIONS)
    }
    assert len(identities) == 1 + len(QUANTIZATIONS)


def test_fp8_on_a_cpu_and_injected_products_are_refused(tmp_path: Path) -> None:
    random_model(NATIVE["Llama"], tmp_path)
    config = config_in(tmp_path)
    weights = load_weights(tmp_path, config, torch.bfloat16, "cpu")
    with pytest.raises(ValueError, match="fp8 products are computed on a GPU"):
        DecoderModel(config, weights, quantization="fp8")
    with pytest.raises(ValueError, match="quantization is 'fp8': give only one of them"):
        DecoderModel(config, weights, quantization="fp8", linear=dense_linear)


def test_fp8_is_a_valid_quantization() -> None:
    assert EngineConfig(model="demo", quantization="fp8").quantization == "fp8"
