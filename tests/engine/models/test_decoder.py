"""The native decoder against transformers, through block tables, chunks and decode steps."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedConfig

from batchmill.engine.loading.weight_loading import load_weights
from batchmill.engine.models.decoder import DecoderModel
from batchmill.engine.models.families import FAMILIES, read_model_config
from batchmill.engine.scheduling.scheduled_batch import ScheduledBatch, ScheduledRequest
from batchmill.engine.step.step_inputs import build_step_inputs
from batchmill.kernels.ops.dispatch import Backend
from batchmill.kernels.ops.linear import Linear, dense_linear

from ...support.tiny_models import NATIVE, architecture_of, random_model
from ..model_steps import (
    BLOCK_SIZE,
    full_logits,
    largest_error,
    make_requests,
    make_runner,
    run_step,
)


def native_model(
    folder: Path,
    config: PreTrainedConfig,
    dtype: torch.dtype = torch.float32,
    backend: Backend = "auto",
) -> DecoderModel:
    values = {**config.to_dict(), "architectures": [architecture_of(config)]}
    native_config = read_model_config(values)
    weights = load_weights(folder, native_config, dtype, "cpu")
    return DecoderModel(native_config, weights, backend=backend)


def test_every_family_has_a_tiny_model() -> None:
    assert {architecture_of(config) for config in NATIVE.values()} == set(FAMILIES)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("name", NATIVE)
def test_logits_equal_transformers_whole_chunked_and_decoded(
    name: str, backend: Backend, tmp_path: Path
) -> None:
    hf_model = random_model(NATIVE[name], tmp_path)
    model = native_model(tmp_path, hf_model.config, backend=backend)
    lengths = [1, 7, 33, 16, 40]
    for cuts in ([40], [5, 11, 3, 21], [30] + [1] * 10):
        requests = make_requests(lengths, model.config.vocab_size)
        want = full_logits(hf_model, requests)
        assert max(logits.abs().max().item() for logits in want) > 1  # logits worth comparing
        assert largest_error(make_runner(model), requests, want, cuts) <= 1e-4


def test_a_mixed_step_gives_logits_for_sampling_rows_only(tmp_path: Path) -> None:
    hf_model = random_model(NATIVE["Llama"], tmp_path)
    model = native_model(tmp_path, hf_model.config)
    runner = make_runner(model)
    decoding, finishing, halfway = make_requests([6, 9, 20], model.config.vocab_size)
    want = full_logits(hf_model, [decoding, finishing, halfway])
    nothing = run_step(runner, [(decoding, 5, False)])
    assert nothing.shape == (0, model.config.vocab_size)
    logits = run_step(runner, [(decoding, 1, True), (finishing, 9, True), (halfway, 8, False)])
    assert logits.shape == (2, model.config.vocab_size)
    torch.testing.assert_close(logits[0], want[0][5], atol=1e-4, rtol=0)
    torch.testing.assert_close(logits[1], want[1][8], atol=1e-4, rtol=0)
    rest = run_step(runner, [(halfway, 12, True)])
    torch.testing.assert_close(rest[0], want[2][19], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["Qwen3", "Mixtral", "Gemma 3 text", "Llama, yarn RoPE"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_stays_near_float32(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    hf_model = random_model(NATIVE[name], tmp_path)
    model = native_model(tmp_path, hf_model.config, dtype)
    requests = make_requests([33, 12], model.config.vocab_size)
    want = full_logits(hf_model, requests)
    spread = want[0].std().item()
    # Rounding is 2^-9 or 2^-12 of each number, some 20 roundings deep; a wrong rotation, mask or
    # norm gives errors as large as the logits themselves.
    tolerance = {torch.bfloat16: 0.25, torch.float16: 0.03}[dtype] * spread
    assert largest_error(make_runner(model), requests, want, [20, 13]) <= tolerance


def test_an_injected_linear_receives_every_matrix_once(tmp_path: Path) -> None:
    hf_model = random_model(NATIVE["Qwen2, tied"], tmp_path)
    config = read_model_config(hf_model.config.to_dict())
    shapes = []

    def recording(weight: Tensor, bias: Tensor | None) -> Linear:
        shapes.append((tuple(weight.shape), bias is not None))
        return dense_linear(weight, bias)

    weights = load_weights(tmp_path, config, torch.float32, "cpu")
    model = DecoderModel(config, weights, linear=recording)
    layer = [((80, 48), True), ((48, 48), False), ((224, 48), False), ((48, 112), False)]
    assert shapes == layer * 3 + [((211, 48), False)]
    requests = make_requests([9], model.config.vocab_size)
    want = full_logits(hf_model, requests)
    assert largest_error(make_runner(model), requests, want, [9]) <= 1e-4


def test_logits_may_be_changed_in_place_and_outside_inference_mode(tmp_path: Path) -> None:
    hf_model = random_model(NATIVE["Llama"], tmp_path)
    model = native_model(tmp_path, hf_model.config)
    runner = make_runner(model)
    requests = make_requests([3], model.config.vocab_size)
    batch = ScheduledBatch(chunks=(ScheduledRequest(requests[0], 0, 3, True),))
    logits = runner.compute_logits(build_step_inputs(batch, BLOCK_SIZE, "cpu"))
    assert logits.dtype == torch.float32
    logits[0, 5] = -torch.inf
    assert logits[0].argmax() != 5
