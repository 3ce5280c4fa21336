"""The native decoder against transformers, through block tables, chunks and decode steps."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

from batchmill.engine.decoder import DecoderModel
from batchmill.engine.kv_cache import KVCache
from batchmill.engine.model_config import ModelConfig
from batchmill.engine.request import Request
from batchmill.engine.runner import ModelRunner
from batchmill.engine.sampling_params import SamplingParams
from batchmill.engine.schedule import ScheduledBatch, ScheduledRequest
from batchmill.engine.step_inputs import build_step_inputs
from batchmill.engine.weights import load_weights
from batchmill.kernels.dispatch import Backend
from batchmill.kernels.linear import Linear, dense_linear

SIZES = {
    "vocab_size": 211,
    "hidden_size": 48,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
CONFIGS = {
    "llama": LlamaConfig(**SIZES),
    "llama with every bias, llama3 rope and a head_dim of its own": LlamaConfig(
        **SIZES,
        attention_bias=True,
        mlp_bias=True,
        head_dim=20,
        rope_theta=500000.0,
        rope_scaling=LLAMA3_ROPE,
    ),
    "llama with linear rope, tied": LlamaConfig(
        **SIZES, rope_scaling={"rope_type": "linear", "factor": 4.0}, tie_word_embeddings=True
    ),
    "mistral": MistralConfig(**SIZES, sliding_window=None),
    "mistral with a sliding window": MistralConfig(**SIZES, sliding_window=9),
    "qwen2": Qwen2Config(**SIZES, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SIZES, head_dim=16),
    "one key head": LlamaConfig(**{**SIZES, "num_key_value_heads": 1}),
    "as many key heads as heads": LlamaConfig(**{**SIZES, "num_key_value_heads": 6}),
}
BLOCK_SIZE = 4


def random_model(config: PreTrainedConfig, folder: Path) -> PreTrainedModel:
    """A model with all weights random, biases and norms too, saved to a folder."""
    torch.manual_seed(5)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(1.0 if "norm" in name else 0.0, 0.2)
    model.eval()
    model.save_pretrained(folder)
    return model


def native_model(
    folder: Path,
    config: PreTrainedConfig,
    dtype: torch.dtype = torch.float32,
    backend: Backend = "auto",
) -> DecoderModel:
    values = {**config.to_dict(), "architectures": [config.architectures[0]]}
    native_config = ModelConfig.from_hf(values)
    weights = load_weights(folder, native_config, dtype, "cpu")
    return DecoderModel(native_config, weights, backend=backend)


def make_runner(model: DecoderModel, num_blocks: int = 120) -> ModelRunner:
    kv_cache = KVCache(
        num_layers=model.config.num_layers,
        num_blocks=num_blocks,
        block_size=BLOCK_SIZE,
        num_kv_heads=model.config.num_kv_heads,
        head_dim=model.config.head_dim,
        dtype=model.dtype,
        device="cpu",
    )
    return ModelRunner(model, kv_cache, "cpu")


def make_requests(lengths: list[int], vocab_size: int, num_blocks: int = 120) -> list[Request]:
    """Requests over random tokens, their blocks handed out in shuffled order."""
    rng = random.Random(3)
    order = list(range(num_blocks))
    rng.shuffle(order)
    requests = []
    for index, length in enumerate(lengths):
        token_ids = [rng.randrange(vocab_size) for _ in range(length)]
        request = Request(
            f"r{index}", token_ids, SamplingParams(), seed=0, max_num_tokens=length + 1
        )
        request.block_ids = [order.pop() for _ in range(-(-length // BLOCK_SIZE))]
        requests.append(request)
    return requests


def run_step(runner: ModelRunner, work: list[tuple[Request, int, bool]]) -> Tensor:
    """Compute some tokens of some requests; the flag says whose last row is wanted."""
    scheduled = tuple(
        ScheduledRequest(request, request.num_computed_tokens, count, samples)
        for request, count, samples in work
    )
    batch = ScheduledBatch(scheduled=scheduled, preempted=())
    logits = runner.run(build_step_inputs(batch, BLOCK_SIZE, "cpu")).clone()
    for request, count, _ in work:
        request.num_computed_tokens += count
    return logits


def full_logits(model: PreTrainedModel, requests: list[Request]) -> list[Tensor]:
    with torch.inference_mode():
        return [
            model(torch.tensor([request.prompt_token_ids])).logits[0].float()
            for request in requests
        ]


def largest_error(
    runner: ModelRunner, requests: list[Request], want: list[Tensor], cuts: list[int]
) -> float:
    """Feed every request by the same cuts, all in one batch; every step's last row must agree."""
    errors = []
    for cut in cuts:
        work = [
            (request, min(cut, request.num_uncomputed_tokens), True)
            for request in requests
            if request.num_uncomputed_tokens
        ]
        logits = run_step(runner, work)
        for row, (request, _, _) in enumerate(work):
            expected = want[requests.index(request)][request.num_computed_tokens - 1]
            errors.append((logits[row] - expected).abs().max().item())
    assert all(request.num_uncomputed_tokens == 0 for request in requests)
    return max(errors)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_transformers_whole_chunked_and_decoded(
    name: str, backend: Backend, tmp_path: Path
) -> None:
    hf_model = random_model(CONFIGS[name], tmp_path)
    model = native_model(tmp_path, hf_model.config, backend=backend)
    lengths = [1, 7, 33, 16, 40]
    for cuts in ([40], [5, 11, 3, 21], [30] + [1] * 10):
        requests = make_requests(lengths, model.config.vocab_size)
        want = full_logits(hf_model, requests)
        assert max(logits.abs().max().item() for logits in want) > 1  # logits worth comparing
        assert largest_error(make_runner(model), requests, want, cuts) <= 1e-4


def test_a_mixed_step_gives_logits_for_sampling_rows_only(tmp_path: Path) -> None:
    hf_model = random_model(CONFIGS["llama"], tmp_path)
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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_stays_near_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    hf_model = random_model(CONFIGS["qwen3"], tmp_path)
    model = native_model(tmp_path, hf_model.config, dtype)
    requests = make_requests([33, 12], model.config.vocab_size)
    want = full_logits(hf_model, requests)
    spread = want[0].std().item()
    # Rounding is 2^-9 or 2^-12 of each number, some 20 roundings deep; a wrong rotation, mask or
    # norm gives errors as large as the logits themselves.
    tolerance = {torch.bfloat16: 0.25, torch.float16: 0.03}[dtype] * spread
    assert largest_error(make_runner(model), requests, want, [20, 13]) <= tolerance


def test_injected_linear_gets_every_matrix_once(tmp_path: Path) -> None:
    hf_model = random_model(CONFIGS["qwen2"], tmp_path)
    config = ModelConfig.from_hf(hf_model.config.to_dict())
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
    hf_model = random_model(CONFIGS["llama"], tmp_path)
    model = native_model(tmp_path, hf_model.config)
    runner = make_runner(model)
    requests = make_requests([3], model.config.vocab_size)
    batch = ScheduledBatch(scheduled=(ScheduledRequest(requests[0], 0, 3, True),), preempted=())
    logits = runner.run(build_step_inputs(batch, BLOCK_SIZE, "cpu"))
    assert logits.dtype == torch.float32
    logits[0, 5] = -torch.inf
    assert logits[0].argmax() != 5
