"""Host time of a decode step: `python tests/bench/host_step.py [steps]`.

The engine runs a stub model, which writes nothing: the logits are the same in every step. All
requests decode. What remains of a step is the engine's work on the host, including detokenization,
which is listed separately (`tracker and text`). Work over whole rows of logits belongs to the
device: the model's call and the sampler's two passes over the logits are subtracted and shown
separately. Sampling is an argmax in both modes: real sampling on a CPU takes a hundred times
as long and leaves the caches cold for the measured code.

Prints, for batches of 1, 64 and 256 requests, greedy and with temperature, top-k, top-p and seeds,
the median over the steps in microseconds, the fastest tenth, and the time of each phase.
"""

from __future__ import annotations

import functools
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from tokenizers import Tokenizer as BackendTokenizer
from tokenizers import decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from batchmill.engine import Engine, EngineConfig, SamplingParams
from batchmill.engine.loading.loading import LoadedModel
from batchmill.engine.memory.kv_cache import KVCache
from batchmill.engine.model_shape import ModelShape
from batchmill.engine.step.step_inputs import StepInputs
from batchmill.engine.text.tokenizer import Tokenizer
from batchmill.kernels.ops.sample import have_finite_maximum

#: Its functions are replaced, so it is not typed.
sampler_module: Any = import_module("batchmill.engine.sampling.sampler")

VOCAB_SIZE = 512
#: The first ones are whole characters, like nearly all tokens.
NUM_TEXT_TOKENS = 94
PROMPT_LENGTH = 100
BATCH_SIZES = (1, 64, 256)
#: Phases that are not host time: the model's call, and work over whole rows of logits.
NOT_HOST = ("model", "rows of logits")
#: What the sampler calls for whole rows of logits.
SAMPLING = ("sample", "sample_and_check", "have_finite_maximum")


def argmax(logits: Tensor, *controls: Tensor) -> Tensor:
    """Sample at almost no cost."""
    return torch.from_numpy(logits.numpy().argmax(axis=-1))


def argmax_and_check(logits: Tensor, *controls: Tensor) -> tuple[Tensor, Tensor]:
    """Sample at almost no cost, and check the logits."""
    return argmax(logits), have_finite_maximum(logits)


class StubModel:
    """A model that computes nothing; each row has another largest logit."""

    config = ModelShape(
        architecture="Stub",
        vocab_size=VOCAB_SIZE,
        num_layers=1,
        num_kv_heads=1,
        head_dim=1,
        max_position_embeddings=4096,
    )
    dtype, device = torch.float32, torch.device("cpu")

    def forward(self, inputs: StepInputs, kv_cache: KVCache, logits: Tensor) -> None:
        """Leave the logits as they are."""


class Phases:
    """Owns the time of each phase of a step, without other phases that it called."""

    def __init__(self) -> None:
        self.elapsed_s: dict[str, float] = defaultdict(float)
        self._inner_s = [0.0]

    def watch(self, owner: Any, name: str, phase: str) -> None:
        """Count the time inside one of an object's methods (or a module's functions)."""
        call: Callable[..., Any] = getattr(owner, name)

        @functools.wraps(call)
        def watched(*args: Any, **kwargs: Any) -> Any:
            self._inner_s.append(0.0)
            started_at_s = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                elapsed_s = time.perf_counter() - started_at_s
                self.elapsed_s[phase] += elapsed_s - self._inner_s.pop()
                self._inner_s[-1] += elapsed_s

        setattr(owner, name, watched)


def stub_tokenizer() -> Tokenizer:
    """Return a tokenizer with one token per byte, and some without text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = BackendTokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend))


def stub_engine(batch_size: int, num_steps: int) -> Engine:
    """Return an engine whose cache fits the whole run."""
    model = StubModel()
    loaded = LoadedModel(model, model.config, stub_tokenizer(), "stub", frozenset({VOCAB_SIZE - 1}))
    length = PROMPT_LENGTH + num_steps + 16
    config = EngineConfig(
        model="stub",
        dtype="float32",
        device="cpu",
        max_model_len=length,
        max_num_seqs=batch_size,
        max_num_batched_tokens=batch_size * PROMPT_LENGTH,
        kv_cache_bytes=8 * (length + 16) * batch_size,
    )
    engine = Engine(config, loaded=loaded)
    logits = torch.rand(batch_size, VOCAB_SIZE, generator=torch.Generator().manual_seed(0))
    logits[:, NUM_TEXT_TOKENS:] = -100.0
    engine._pipeline._runner._logits = logits
    return engine


def watch_all(engine: Engine, phases: Phases) -> None:
    """Watch the parts of a step; the rest counts as the step's own time."""
    pipeline = engine._pipeline
    phases.watch(engine._scheduler, "schedule", "schedule")
    phases.watch(engine._scheduler, "mark_launched", "schedule")
    phases.watch(pipeline._builder, "build", "inputs")
    phases.watch(pipeline._runner, "compute", "runner")
    phases.watch(engine._loaded.model, "forward", "model")
    phases.watch(pipeline._sampler, "prepare", "sampler")
    phases.watch(pipeline._sampler, "sample", "sampler")
    phases.watch(pipeline, "collect", "collect")
    for each in SAMPLING:
        phases.watch(sampler_module, each, "rows of logits")
    phases.watch(engine._scheduler, "update", "update")
    phases.watch(engine._unfinished, "append_tokens", "tracker and text")
    phases.watch(engine._unfinished, "take_outputs", "outputs")


def measure(batch_size: int, params: SamplingParams, num_steps: int) -> dict[str, float]:
    """Return microseconds per step: medians of phases and of `host`, and its fastest tenth."""
    engine = stub_engine(batch_size, num_steps)
    for index in range(batch_size):
        engine.add_request(f"request {index}", [index % NUM_TEXT_TOKENS] * PROMPT_LENGTH, params)
    for _ in range(5):  # one for the prompts, the others warm up
        engine.step()
    phases = Phases()
    originals = [getattr(sampler_module, each) for each in SAMPLING]
    sampler_module.sample, sampler_module.sample_and_check = argmax, argmax_and_check
    watch_all(engine, phases)
    steps: list[dict[str, float]] = []
    for _ in range(num_steps):
        phases.elapsed_s.clear()
        started_at_s = time.perf_counter()
        outputs = engine.step()
        total_s = time.perf_counter() - started_at_s
        assert len(outputs) == batch_size
        host_s = total_s - sum(phases.elapsed_s[name] for name in NOT_HOST)
        own_s = total_s - sum(phases.elapsed_s.values())
        steps.append({**phases.elapsed_s, "rest": own_s, "host": host_s})
    for each, original in zip(SAMPLING, originals, strict=True):
        setattr(sampler_module, each, original)
    medians = {name: 1e6 * statistics.median(each[name] for each in steps) for name in steps[0]}
    fastest = sorted(each["host"] for each in steps)[len(steps) // 10]
    return {**medians, "fastest tenth": 1e6 * fastest}


def main() -> None:
    """Measure and print."""
    num_steps = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    torch.set_num_threads(1)
    modes = {
        "greedy": SamplingParams(temperature=0, ignore_eos=True, max_tokens=None),
        "sampled": SamplingParams(
            temperature=0.8, top_k=50, top_p=0.9, seed=7, ignore_eos=True, max_tokens=None
        ),
    }
    for batch_size in BATCH_SIZES:
        for mode, params in modes.items():
            medians = measure(batch_size, params, num_steps)
            host_us, fastest_us = medians.pop("host"), medians.pop("fastest tenth")
            parts = ", ".join(f"{name} {us:.0f}" for name, us in medians.items())
            figures = f"host {host_us:4.0f} us per step, {fastest_us:4.0f} at best"
            print(f"batch {batch_size:3} {mode:7}: {figures}")
            print(f"    {parts}")


if __name__ == "__main__":
    main()
