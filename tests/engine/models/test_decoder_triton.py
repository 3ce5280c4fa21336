"""The decoder on the GPU's kernels, in Triton's interpreter if there is no GPU."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from batchmill.engine.execution import padded_graphs
from batchmill.engine.execution.graph_recorder import PlainRecorder
from batchmill.engine.execution.padded_graphs import PaddedGraphs
from batchmill.engine.execution.step_pipeline import ModelRunner
from batchmill.engine.loading.weight_loading import load_weights
from batchmill.engine.memory.kv_cache import KVCache
from batchmill.engine.models.decoder import DecoderModel
from batchmill.engine.models.families import read_model_config
from batchmill.engine.request.request import Request
from batchmill.engine.step.step_inputs import StepInputs
from batchmill.kernels.ops.dispatch import Backend

from ...support.tiny_models import NATIVE, random_model
from ..model_steps import BLOCK_SIZE, make_requests, run_step
from .test_decoder import native_model

pytest.importorskip("triton", reason="triton is not installed; `make setup` installs it on Linux")
if torch.cuda.is_available():
    pytest.skip("tests/bench/gpu_run.py compares the backends on a GPU", allow_module_level=True)

#: (requests by number, tokens of each) of every step: two prompts, one of them in chunks that run
#: beside decodes; then decodes alone.
STEPS = (((0, 5), (1, 12)), ((0, 1), (1, 9), (2, 7)), ((0, 1), (1, 1), (2, 1)), ((0, 1), (2, 1)))
LENGTHS = [8, 22, 9]


@pytest.fixture(autouse=True)
def _interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")  # Triton looks again when it first launches


def logits_of(
    model: DecoderModel,
    kv_dtype: torch.dtype | None = None,
    value_before: float = 0.0,
    runner: Callable[[DecoderModel, KVCache], ModelRunner] | None = None,
) -> list[Tensor]:
    """Return each step's logits, over a cache whose unused slots hold `value_before`."""
    kv_cache = KVCache(
        num_layers=model.config.num_layers,
        num_blocks=30,
        block_size=BLOCK_SIZE,
        num_kv_heads=model.config.num_kv_heads,
        head_dim=model.config.head_dim,
        dtype=kv_dtype or model.dtype,
        device="cpu",
    )
    for keys, values in kv_cache.layers:
        keys.fill_(value_before)
        values.fill_(value_before)
    runs = (runner or partial(ModelRunner, device="cpu"))(model, kv_cache)
    requests: list[Request] = make_requests(LENGTHS, model.config.vocab_size, num_blocks=30)
    return [run_step(runs, [(requests[i], n, True) for i, n in step]) for step in STEPS]


class PaddedRunner(ModelRunner):
    """Computes each step in the next of a graph's sizes."""

    def __init__(self, model: DecoderModel, kv_cache: KVCache) -> None:
        super().__init__(model, kv_cache, "cpu")
        logits = torch.empty(4, model.config.vocab_size)
        self._graphs = PaddedGraphs(
            model, kv_cache, logits, max_model_len=40, recorder=PlainRecorder()
        )
        self._graphs.record_all()

    def compute_logits(self, inputs: StepInputs) -> Tensor:
        """See `ModelRunner`."""
        assert self._graphs.can_replay(inputs)
        return self._graphs.compute(inputs)


# Attention writes nothing to rows of padding, so they hold anything.
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_padding_of_a_step_with_prompts_changes_no_logits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(padded_graphs, "TOKEN_SIZES", (4, 20))
    triton, reference = pair(tmp_path, "Qwen3")
    padded = logits_of(triton, value_before=math.nan, runner=PaddedRunner)
    for ours, theirs in zip(padded, logits_of(reference), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def pair(folder: Path, name: str) -> tuple[DecoderModel, DecoderModel]:
    """Return two models with the same weights, for the Triton kernels and for the reference."""
    config = random_model(NATIVE[name], folder).config
    backends: tuple[Backend, Backend] = ("triton", "reference")
    triton, reference = (native_model(folder, config, backend=backend) for backend in backends)
    return triton, reference


@pytest.mark.parametrize(
    "name",
    [
        "Llama, every bias, llama3 RoPE, explicit head_dim",
        pytest.param("Mistral, sliding window", marks=pytest.mark.nightly),  # Gemma 3 has windows
        pytest.param("Qwen3", marks=pytest.mark.nightly),  # the test of padding computes it
        pytest.param("Qwen2, windows in some layers", marks=pytest.mark.nightly),  # as Gemma 3
        "Gemma 3 text",
        "Phi-3, longrope, part of each head rotated",
        "Llama, dynamic RoPE, one key head",
        "Qwen3-MoE",
        "gpt-oss",
        pytest.param("Qwen2-MoE, shared expert", marks=pytest.mark.nightly),  # GLM-4.5 has one
        "GLM-4.5, first layer dense, groups of experts, shares scaled",
        pytest.param("ERNIE 4.5, biases", marks=pytest.mark.nightly),  # Llama has every bias
        pytest.param("GLM-4", marks=pytest.mark.nightly),  # rotates as Phi-3, norms as Gemma 3
        "Ministral 3, queries grow",
        "HunYuan dense",
        "Granite",
        "OLMo 3",
        "EXAONE 4, windows and no rotation in some layers",
    ],
)
def test_prefill_decode_and_mixed_steps_give_the_references_logits(
    name: str, tmp_path: Path
) -> None:
    triton, reference = pair(tmp_path, name)
    # The Triton kernels do not read slots that hold no token.
    got, want = logits_of(triton, value_before=math.nan), logits_of(reference)
    assert triton.is_capturable
    assert reference.is_capturable == (reference.config.experts is None)
    assert max(logits.abs().max().item() for logits in want) > 1  # logits worth comparing
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


def test_an_eight_bit_cache_stays_near_full_precision(tmp_path: Path) -> None:
    """By the reference: the interpreter rounds to eight bits wrongly if the mantissa carries.

    Triton's results with such a cache are compared in tests/kernels, with numbers that have eight
    bits already, and on a GPU by tests/bench/gpu_run.py.
    """
    _, reference = pair(tmp_path, "Qwen3")
    full = logits_of(reference)
    spread = full[0].std().item()
    for eight_bits, exact in zip(logits_of(reference, torch.float8_e4m3fn), full, strict=True):
        # A key is off by up to 2**-4 of itself; a wrong scale gives errors as large as the logits.
        assert 0 < (eight_bits - exact).abs().mean().item() < 0.2 * spread


@pytest.mark.parametrize("name", ["Qwen3", "Qwen3-MoE"])
def test_fp8_weights_give_nearly_the_logits_of_the_reference(name: str, tmp_path: Path) -> None:
    """Only nearly: the interpreter rounds one number in a hundred to eight bits wrongly."""
    config = read_model_config(random_model(NATIVE[name], tmp_path).config.to_dict())
    logits = []
    for backend in ("triton", "reference"):
        weights = load_weights(tmp_path, config, torch.bfloat16, "cpu")
        model = DecoderModel(config, weights, backend=backend, quantization="fp8")
        assert model.is_capturable
        logits.append(logits_of(model, value_before=math.nan if backend == "triton" else 0.0))
    spread = logits[1][0].std().item()
    for ours, theirs in zip(*logits, strict=True):
        # Wrong scales, rows or columns give logits that have nothing in common: more than 1.
        assert (ours - theirs).abs().mean().item() < 0.25 * spread


def test_a_decode_step_reads_nothing_on_the_host_and_launches_few_kernels() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parents[1] / "execution" / "decode_on_meta.py")],
        capture_output=True,
        text=True,
        env=environment,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    layers = 3
    once = {"plan_decode_kernel": 1, "sample_floor_kernel": 1, "sample_tile_kernel": 1}
    once |= {"sample_pick_kernel": 1, "rms_norm_kernel": 2 * layers + 1}
    attention = ("rope_and_cache_kernel", "decode_attention_kernel", "merge_decode_kernel")
    each = dict.fromkeys((*attention, "gated_activation_kernel"), layers)
    # With the four matrix products, ten kernels per layer.
    dense = once | each
    # With fp8 weights eleven: norms and gates quantize their results, and a separate kernel
    # quantizes that of attention.
    fp8 = dense | {"quantize_fp8_kernel": layers, "gated_activation_fp8_kernel": layers}
    del fp8["gated_activation_kernel"]
    # A mixture's routing takes two kernels, its products two, and its sum one. The first product
    # gathers and activates.
    routing = ("route_experts_kernel", "order_experts_kernel", "combine_experts_kernel")
    sparse = dense | dict.fromkeys(routing, layers) | {"expert_linear_kernel": 2 * layers}
    del sparse["gated_activation_kernel"]
    # In fp8 a kernel quantizes the rows that the router takes, and another activates and quantizes.
    sparse_fp8 = sparse | {"quantize_fp8_kernel": 2 * layers, "gated_activation_fp8_kernel": layers}
    found = json.loads(done.stdout)
    # A step with prompts attends by three kernels more, two of them per layer; it is recorded up to
    # the logits.
    prefill = dict.fromkeys(("split_prefill_attention_kernel", "merge_prefill_kernel"), layers)
    prefill["plan_prefill_kernel"] = 1
    samples = {name: 1 for name in dense if name.startswith("sample")}
    assert found.pop("padded") | samples == dense | prefill
    # Adapters add two kernels to each of the four products; steps without any have none.
    adapters = dict.fromkeys(("lora_down_kernel", "lora_up_kernel"), 4 * layers)
    assert found.pop("decodes") | samples == dense
    assert found.pop("adapted decodes") | samples == dense | adapters
    assert found.pop("adapted padded") | samples == dense | prefill | adapters
    assert found.pop("sparse") == sparse
    assert found.pop("sparse, fp8 weights") == sparse_fp8
    for kind, launched in found.items():
        assert launched == (fp8 if "fp8 weights" in kind else dense), kind
