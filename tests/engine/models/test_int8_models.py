"""Models with int8 weights: the same in every batch, near the unquantized ones, refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from batchmill.engine import EngineConfig, SamplingParams
from batchmill.engine.errors import ConfigError, UnsupportedModelError
from batchmill.engine.loading.loading import LoadedModel, load_model
from batchmill.engine.loading.weight_loading import load_weights
from batchmill.engine.models.decoder import DecoderModel
from batchmill.engine.models.families import read_model_config
from batchmill.kernels.cpu.library import default_library
from batchmill.kernels.ops.linear import dense_linear

from ...support.tiny_models import NATIVE, OTHERS, random_model
from ..greedy_checks import WAYS, alone
from ..model_steps import full_logits, largest_error, make_requests, make_runner, run_step
from ..tiny_model import POISON, run, save_model, tiny_engine

GREEDY = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)


def load(folder: Path, **settings: Any) -> LoadedModel:
    given = {"dtype": "float32", "device": "cpu", "quantization": "int8"} | settings
    return load_model(str(folder), **given)


@pytest.mark.parametrize("name", NATIVE)
def test_logits_of_every_family_stay_near_the_unquantized_ones(name: str, tmp_path: Path) -> None:
    hf_model = random_model(NATIVE[name], tmp_path)
    loaded = load(tmp_path)
    requests = make_requests([33, 12], loaded.config.vocab_size)
    want = full_logits(hf_model, requests)
    # Steps of 1/127 of the largest in a block, three layers deep; a wrong scale, column or block
    # gives errors as large as the logits themselves, of which the largest is three to four times
    # this spread.
    # gpt-oss has one row at 0.57, the other at 0.15; plain torch with int8 weights agrees to 1e-6.
    tolerance = (0.7 if name == "gpt-oss" else 0.5) * want[0].std().item()
    assert 0 < largest_error(make_runner(loaded.model), requests, want, [20, 13]) <= tolerance


@pytest.mark.parametrize(
    "name", ["Llama", "Mixtral", "Qwen2-MoE, shared expert", "Gemma 3 text", "GLM-4", "OLMo 3"]
)
def test_kernels_compute_the_same_as_plain_torch(name: str, tmp_path: Path) -> None:
    hf_model = random_model(NATIVE[name], tmp_path)
    config = read_model_config(hf_model.config.to_dict())
    weights = load_weights(tmp_path, config, torch.float32, "cpu")
    plain = DecoderModel(config, weights, backend="reference", quantization="int8")
    logits = []
    for model in (plain, load(tmp_path).model):
        requests = make_requests([33, 12], config.vocab_size)
        work = [(request, len(request.prompt_token_ids), True) for request in requests]
        logits.append(run_step(make_runner(model), work))
    # Between the products numbers are rounded in another order, which may move an integer by one.
    torch.testing.assert_close(*logits, atol=0.05, rtol=0)


@pytest.mark.parametrize("name", ["Llama", "Qwen3-MoE"])
def test_tokens_do_not_depend_on_how_they_are_computed(name: str, tmp_path: Path) -> None:
    random_model(NATIVE[name], tmp_path)
    loaded = load(tmp_path)
    tokens = alone(tmp_path, loaded, [])
    assert [
        way for way, compute in WAYS.items() if compute(tmp_path, loaded, tokens) != tokens
    ] == []


def test_a_request_with_nan_fails_and_does_not_change_the_others(tmp_path: Path) -> None:
    save_model(tmp_path)
    loaded = load(tmp_path)
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


def test_another_quantization_is_another_identity(tmp_path: Path) -> None:
    random_model(NATIVE["Llama"], tmp_path)
    identities = {load(tmp_path, quantization=None).identity, load(tmp_path).identity}
    identities.add(load(tmp_path, dtype="bfloat16").identity)
    assert len(identities) == 3
    assert load(tmp_path).identity in identities


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model_impl": "transformers"},
            "'int8'.*native decoder.*set model_impl to 'auto' or 'native'",
        ),
        (
            {"quantization": "int3"},
            "quantization is 'int3': choose int8 or int4 or fp8, or leave it out",
        ),
    ],
)
def test_arguments_that_exclude_int8_are_refused_by_name(
    changes: dict[str, str], message: str, tmp_path: Path
) -> None:
    random_model(NATIVE["Llama"], tmp_path)
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, **changes)


def test_a_model_that_only_transformers_computes_is_refused(tmp_path: Path) -> None:
    random_model(OTHERS["GPT-2"], tmp_path)
    with pytest.raises(UnsupportedModelError, match="GPT2LMHeadModel is computed by transformers"):
        load(tmp_path)


def test_a_gpu_is_refused_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random_model(NATIVE["Llama"], tmp_path)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    message = r"which only CPUs compute, but the device is cuda: .* set quantization to 'fp8'"
    with pytest.raises(ConfigError, match=message):
        load(tmp_path, device="cuda")


def test_without_a_compiler_int8_is_refused_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random_model(NATIVE["Llama"], tmp_path)
    default_library.cache_clear()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("BATCHMILL_CACHE_DIR", str(tmp_path))
    with pytest.raises(ConfigError, match=r"needs the C\+\+ kernels.*install g\+\+ or clang"):
        load(tmp_path)


def test_injected_products_exclude_a_quantization(tmp_path: Path) -> None:
    random_model(NATIVE["Llama"], tmp_path)
    with pytest.raises(ConfigError, match="quantization is 'int8': give only one of them"):
        load(tmp_path, linear=dense_linear)


def test_an_unknown_quantization_is_refused_with_the_choices() -> None:
    with pytest.raises(
        ConfigError, match="quantization is 'awq': choose one of int8, int4, fp8, or leave it out"
    ):
        EngineConfig(model="demo", quantization="awq")
    assert EngineConfig(model="demo", quantization="int8").quantization == "int8"
