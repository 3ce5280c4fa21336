"""Models with weights of 4 bits: the same in every batch, near the unquantized ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from batchmill.engine.loading.loading import LoadedModel, load_model
from batchmill.engine.loading.weight_loading import load_weights
from batchmill.engine.models.decoder import DecoderModel
from batchmill.engine.models.families import read_model_config

from ...support.tiny_models import NATIVE, random_model
from ..greedy_checks import WAYS, alone
from ..model_steps import full_logits, largest_error, make_requests, make_runner, run_step


def load(folder: Path, **settings: Any) -> LoadedModel:
    given = {"dtype": "float32", "device": "cpu", "quantization": "int4"} | settings
    return load_model(str(folder), **given)


@pytest.mark.parametrize("name", ["Llama", "Gemma 3 text", "Mistral"])
def test_logits_stay_near_the_unquantized_ones(name: str, tmp_path: Path) -> None:
    hf_model = random_model(NATIVE[name], tmp_path)
    loaded = load(tmp_path)
    requests = make_requests([33, 12], loaded.config.vocab_size)
    want = full_logits(hf_model, requests)
    # Steps of 1/15 of a group's range, three layers deep; a wrong scale, column or block gives
    # errors as large as the logits themselves, of which the largest is three to four times this
    # spread.
    tolerance = 1.5 * want[0].std().item()
    assert 0 < largest_error(make_runner(loaded.model), requests, want, [20, 13]) <= tolerance


@pytest.mark.parametrize("name", ["Llama", "Mixtral"])
def test_kernels_compute_the_same_as_plain_torch(name: str, tmp_path: Path) -> None:
    hf_model = random_model(NATIVE[name], tmp_path)
    config = read_model_config(hf_model.config.to_dict())
    weights = load_weights(tmp_path, config, torch.float32, "cpu")
    plain = DecoderModel(config, weights, backend="reference", quantization="int4")
    logits = []
    for model in (plain, load(tmp_path).model):
        requests = make_requests([33, 12], config.vocab_size)
        work = [(request, len(request.prompt_token_ids), True) for request in requests]
        logits.append(run_step(make_runner(model), work))
    # Between the products numbers are rounded in another order, which may move an integer by one.
    torch.testing.assert_close(*logits, atol=0.05, rtol=0)


def test_tokens_do_not_depend_on_how_they_are_computed(tmp_path: Path) -> None:
    random_model(NATIVE["Llama"], tmp_path)
    loaded = load(tmp_path)
    tokens = alone(tmp_path, loaded, [])
    assert [
        way for way, compute in WAYS.items() if compute(tmp_path, loaded, tokens) != tokens
    ] == []
    assert loaded.identity not in {
        load(tmp_path, quantization=quantization).identity for quantization in (None, "int8")
    }
