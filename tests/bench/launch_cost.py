"""Host time of a GPU's steps, without a GPU: `python tests/bench/launch_cost.py [layers]`.

The engine's Python and Triton's are real; kernels and graph replays are replaced by nothing.
Tensors lie on the CPU and are tiny, so what is left of a matrix product is its call. Not included:
the driver's part of a launch (3 to 5 us), and pinned memory for uploads. Times are of the thread,
so that other processes on the machine do not count; printed is the lower quartile.

Prints the cost of one launch, with and without Triton's own resolution of it; and of whole steps
(inputs, launch, sampling, collection) of 64 requests, kernel by kernel and replayed: decodes alone,
with one row that has a control or is scored, and with a part of a prompt beside them.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from batchmill.engine import SamplingParams
from batchmill.engine.execution import special_rows, step_pipeline
from batchmill.engine.memory.kv_cache import KVCache
from batchmill.engine.models.decoder import DecoderModel
from batchmill.engine.models.model_config import (
    AttentionConfig,
    LayerConfig,
    ModelConfig,
    RopeConfig,
)
from batchmill.engine.models.weights import allocate_weights
from batchmill.engine.request.request import Request
from batchmill.engine.request.scores import TokenScores
from batchmill.engine.request.token_controls import RequestControls
from batchmill.engine.sampling import logits_filters, sampler
from batchmill.engine.scheduling.scheduled_batch import ScheduledBatch, ScheduledRequest
from batchmill.kernels.gpu import launch as launch_module
from batchmill.kernels.gpu.rms_norm import rms_norm_kernel, rms_norm_triton
from batchmill.kernels.ops.sample import sample, sample_and_check

NUM_REQUESTS = 64
#: Different tokens in the output of each request: penalties work on as many.
NUM_KNOWN = 256
VOCAB_SIZE = 512
#: Modules whose kernels refuse tensors that are not on a GPU.
CHECKED = ("paged_attention", "rope", "rms_norm", "gated_activation", "sample", "write_kv")
CONTROLS: dict[str, dict[str, Any]] = {
    "none": {},
    "min_p": {"min_p": 0.1},
    "min_tokens": {"min_tokens": 900},
    "presence_penalty": {"presence_penalty": 0.5},
    "typical_p": {"typical_p": 0.9},
    "logprobs": {"logprobs": 2},
}


class FakeDriver:
    """A GPU of compute capability 9.0 on which nothing runs."""

    def get_current_device(self) -> int:
        """Return the only device."""
        return 0

    def get_current_stream(self, device: int) -> int:
        """Return the default stream."""
        return 0

    def get_current_target(self) -> GPUTarget:
        """Return the architecture."""
        return GPUTarget("cuda", 90, 32)


class FakeKernel:
    """A compiled kernel that does nothing."""

    function, packed_metadata = 0, ()
    num_launches = 0

    def run(self, *args: Any) -> None:
        """Count the launch."""
        FakeKernel.num_launches += 1

    def launch_metadata(self, grid: Any, stream: int, *args: Any) -> None:
        """Return nothing: there are no hooks."""


def fake_compile(kernel: Any, key: Any, signature: Any, device: int, *args: Any) -> FakeKernel:
    """Compile nothing, and keep that as Triton keeps a kernel."""
    compiled = FakeKernel()
    kernel.device_caches[device][0][key] = compiled
    return compiled


class NoRecorder:
    """Replays nothing."""

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Return a function that does nothing."""
        return lambda: None


def sample_nothing(*args: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Launch the sampler, and return token 0 of every row."""
    token_ids, is_finite = sample_and_check(*args, backend="triton")
    return token_ids.zero_(), is_finite.fill_(True)


def quartile_us(call: Callable[[], object], count: int) -> float:
    """Return the lower quartile of a call's time on this thread, microseconds."""
    for _ in range(5):
        call()
    times = []
    for _ in range(count):
        started_at_s = time.thread_time()
        call()
        times.append(time.thread_time() - started_at_s)
    return 1e6 * sorted(times)[count // 4]


def tiny_model(num_layers: int) -> DecoderModel:
    """Return a model of many layers that hardly compute."""
    layer = LayerConfig(AttentionConfig(RopeConfig(1e6)))
    config = ModelConfig(
        architecture="Qwen3ForCausalLM",
        vocab_size=VOCAB_SIZE,
        num_layers=num_layers,
        num_kv_heads=2,
        head_dim=16,
        max_position_embeddings=4096,
        hidden_size=64,
        intermediate_size=128,
        num_heads=4,
        rms_norm_eps=1e-6,
        layers=(layer,) * num_layers,
        tie_word_embeddings=True,
        attention_scale=0.25,
        qk_norm=True,
    )
    return DecoderModel(config, allocate_weights(config, torch.float32, "cpu"), backend="triton")


def requests_with(controls: dict[str, Any]) -> list[Request]:
    """Return requests with `NUM_KNOWN` output tokens; the first has the controls."""
    made = []
    for index in range(NUM_REQUESTS):
        params = SamplingParams(max_tokens=3000, **(controls if index == 0 else {}))
        own = RequestControls(params, [1, 2, 3], ending_token_ids=frozenset({5}))
        request = Request(
            str(index),
            [1, 2, 3],
            params,
            seed=index,
            max_num_tokens=3100,
            resumed_token_ids=[10 + number for number in range(NUM_KNOWN)],
            controls=own if own.is_needed else None,
            scores=TokenScores.of(
                num_prompt_tokens=3,
                num_resumed_tokens=NUM_KNOWN,
                prompt_logprobs=None,
                logprobs=params.logprobs,
                entropy=False,
            ),
        )
        request.block_ids = list(range(200))
        made.append(request)
    return made


class Steps:
    """Runs steps of a pipeline, one position further each time."""

    def __init__(self, pipeline: step_pipeline.StepPipeline, controls: dict[str, Any]) -> None:
        self._pipeline = pipeline
        self._requests = requests_with(controls)
        self._position = self._requests[0].num_tokens
        whole = [ScheduledRequest(each, self._position - 3, 3, True) for each in self._requests]
        self._run(ScheduledBatch(chunks=tuple(whole)))

    def decode(self, chunks: tuple[ScheduledRequest, ...] = ()) -> None:
        """Run a step in which every request decodes, beside these chunks."""
        starts = [self._position] * NUM_REQUESTS
        self._run(
            ScheduledBatch(decodes=tuple(self._requests), decode_starts=starts, chunks=chunks)
        )
        self._position += 1

    def _run(self, batch: ScheduledBatch) -> None:
        self._pipeline.launch(batch)
        self._pipeline.collect()
        self._requests[0].output_token_ids.append(0)  # controls follow the tokens


def make_pipeline(model: DecoderModel, *, decode_graphs: bool) -> step_pipeline.StepPipeline:
    """Return a pipeline whose graphs do nothing."""
    kv_cache = KVCache(
        num_layers=model.config.num_layers,
        num_blocks=256,
        block_size=16,
        num_kv_heads=2,
        head_dim=16,
        dtype=torch.float32,
        device="cpu",
    )
    return step_pipeline.StepPipeline(
        model, kv_cache, max_num_seqs=96, max_model_len=3200, decode_graphs=decode_graphs
    )


def replace_device() -> None:
    """Replace the GPU's driver, compiler, sampled tokens and recorded graphs by nothing."""
    driver.set_active(FakeDriver())
    replaced: list[tuple[Any, str, Any]] = [
        (JITFunction, "_do_compile", fake_compile),
        *((each, "uses_numpy", lambda logits: False) for each in (logits_filters, special_rows)),
        (sampler, "sample", lambda *args: sample(*args, backend="triton").zero_()),
        (sampler, "sample_and_check", sample_nothing),
        (step_pipeline, "recorder_for", lambda device: NoRecorder()),
        *(
            (import_module(f"batchmill.kernels.gpu.{each}"), "check_device", lambda *args: None)
            for each in CHECKED
        ),
    ]
    for owner, name, value in replaced:
        setattr(owner, name, value)


def main() -> None:
    """Measure and print."""
    num_layers = int(sys.argv[1]) if len(sys.argv) > 1 else 28
    torch.set_num_threads(1)
    replace_device()
    x, weight = torch.zeros(8, 64), torch.ones(64)
    cached_us = quartile_us(lambda: rms_norm_triton(x, weight, 1e-6), 2000)
    first = launch_module.CachedLaunch.__call__
    launch_module.CachedLaunch.__call__ = (  # type: ignore[method-assign]
        lambda self, grid, tensors, numbers=(), **settings: self._kernel[grid](
            *tensors, *numbers, **settings
        )
    )
    own_us = quartile_us(lambda: rms_norm_triton(x, weight, 1e-6), 2000)
    launch_module.CachedLaunch.__call__ = first  # type: ignore[method-assign]
    tensors = (x, x, x, x, weight)
    launch = launch_module.CachedLaunch(rms_norm_kernel)
    launch_us = quartile_us(
        lambda: launch(
            (8,),
            tensors,
            (64, 0, 8, 1e-6),
            ADD=False, QUANTIZE=False, SIZE=64, ROWS_PER_TOKEN=1, ROWS=1, BLOCK=64, num_warps=1,
        ),
        5000,
    )  # fmt: skip
    print(f"a cached launch: {launch_us:.1f} us")
    print(f"rms_norm, its output allocated: {cached_us:.1f} us; by Triton's launch {own_us:.1f} us")
    model = tiny_model(num_layers)
    prompt = Request("new", [1] * 60, SamplingParams(), seed=1, max_num_tokens=100)
    prompt.block_ids = list(range(8))
    chunk = ScheduledRequest(prompt, 0, 60, True)
    for name, decode_graphs in (("kernel by kernel", False), ("replayed", True)):
        pipeline = make_pipeline(model, decode_graphs=decode_graphs)
        for control, params in CONTROLS.items():
            steps = Steps(pipeline, params)
            us = quartile_us(steps.decode, 300 if decode_graphs else 40)
            print(f"{name}: {NUM_REQUESTS} decodes, control {control}: {us:.0f} us")
        steps = Steps(pipeline, {})
        before = FakeKernel.num_launches
        steps.decode((chunk,))
        launched = FakeKernel.num_launches - before
        us = quartile_us(partial(steps.decode, (chunk,)), 300 if decode_graphs else 40)
        what = f"{NUM_REQUESTS} decodes and 60 tokens of a prompt"
        print(f"{name}: {what}: {us:.0f} us, {launched} Triton launches")


if __name__ == "__main__":
    main()
