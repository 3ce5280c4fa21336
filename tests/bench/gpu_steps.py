"""Decode steps of whole models: launched from Python, as a CUDA graph, and their floors."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from gpu_floors import decode_floor_s
from gpu_models import named_shape, random_model
from gpu_report import Bench, capture
from torch import Tensor

from batchmill.engine.memory.kv_cache import KVCache
from batchmill.engine.models.decoder import DecoderModel
from batchmill.engine.step.step_inputs import StepInputs
from batchmill.kernels.ops.sample import sample
from batchmill.kernels.reference.fp8_rows import FP8

BATCHES = (1, 8, 32, 64, 128, 256)
CONTEXT = 1024


class StepMaker:
    """A model with its own cache, and steps without a scheduler.

    The cache contains random numbers: attention over zeros would not cost the same as over keys.
    """

    def __init__(
        self,
        model: DecoderModel,
        *,
        block_size: int,
        num_seqs: int,
        num_tokens: int,
        kv_dtype: torch.dtype | None = None,
    ) -> None:
        """Make room for `num_seqs` sequences of `num_tokens` tokens each."""
        self.model = model
        self._device = model.device
        self._blocks_a_seq = -(-num_tokens // block_size)
        self._block_size = block_size
        config = model.config
        self.kv_cache = KVCache(
            num_layers=config.num_layers,
            num_blocks=num_seqs * self._blocks_a_seq,
            block_size=block_size,
            num_kv_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            dtype=kv_dtype or model.dtype,
            device=model.device,
        )
        generator = torch.Generator(self._device).manual_seed(1)
        for tensors in self.kv_cache.layers:
            for tensor in tensors:
                # Block by block: whole layers at once would need the same memory again.
                noise = torch.randn(tensor.shape[1:], generator=generator, device=self._device).to(
                    tensor.dtype
                )
                tensor.copy_(noise.expand(tensor.shape))
        order = torch.randperm(num_seqs * self._blocks_a_seq, generator=torch.Generator())
        self._tables = order.view(num_seqs, -1).to(self._device, torch.int32)
        self._logits = torch.empty(num_seqs, config.vocab_size, device=self._device)

    def decode_inputs(self, *, context: int, num_seqs: int | None = None) -> StepInputs:
        """Return the inputs of one more token for `num_seqs` sequences of `context` tokens."""
        tables = self._tables[:num_seqs]
        count = len(tables)
        positions = torch.full((count,), context - 1, device=self._device)
        block = tables[:, (context - 1) // self._block_size].long()
        generator = torch.Generator().manual_seed(2)
        token_ids = torch.randint(0, self.model.config.vocab_size, (count,), generator=generator)
        return StepInputs(
            input_ids=token_ids.to(self._device),
            positions=positions,
            slot_mapping=block * self._block_size + (context - 1) % self._block_size,
            block_tables=tables,
            cu_seqlens_q=torch.arange(count + 1, device=self._device, dtype=torch.int32),
            seq_lens=torch.full((count,), context, device=self._device, dtype=torch.int32),
            sample_rows=torch.arange(count, device=self._device),
            max_query_len=1,
            max_seq_len=context,
        )

    def run(self, inputs: StepInputs) -> Tensor:
        """Compute the logits of a step."""
        logits = self._logits[: len(inputs.sample_rows)]
        with torch.inference_mode():
            self.model.forward(inputs, self.kv_cache, logits)
        return logits

    def run_and_sample(self, inputs: StepInputs) -> Tensor:
        """Compute a step and sample its tokens at temperature 0.6."""
        logits = self.run(inputs)
        count = len(logits)
        heat = torch.full((count,), 0.6, device=self._device)
        whole = torch.zeros(count, dtype=torch.int64, device=self._device)
        one, off = torch.ones_like(heat), torch.full_like(heat, -torch.inf)
        return sample(logits, heat, whole, one, off, whole, whole)


def steps_of(
    name: str, batches: tuple[int, ...] = BATCHES, *, fp8: bool = False
) -> Callable[[Bench], None]:
    """Return a section: decode steps of one shape, in bf16 or with fp8 weights and cache."""

    def section(bench: Bench) -> None:
        _steps(bench, name, batches, fp8=fp8)

    return section


def _steps(bench: Bench, name: str, batches: tuple[int, ...], *, fp8: bool) -> None:
    batches, context = ((1, 3), 40) if bench.toy else (batches, CONTEXT)
    dtype = torch.float32 if bench.toy else torch.bfloat16
    quantization = "fp8" if fp8 else None
    shape = named_shape(name, toy=bench.toy)
    model = random_model(shape, bench.device, dtype=dtype, quantization=quantization)
    kv_dtype = FP8 if fp8 and not bench.toy else None
    maker = StepMaker(
        model,
        block_size=16 if bench.toy else 64,
        num_seqs=max(batches),
        num_tokens=context,
        kv_dtype=kv_dtype,
    )
    for batch in batches:
        bench.check_time(3 if not bench.toy else 0)
        inputs = maker.decode_inputs(context=context, num_seqs=batch)
        eager_us, host_us = _eager(bench, maker, inputs)
        graph_us, difference = None, None
        if bench.device.type == "cuda":
            graph = capture(partial(maker.run_and_sample, inputs))
            graph_us = bench.time_us(graph.replay)
            difference = _replay_difference(maker, inputs)
        numbers = np.array([float(batch)])
        floor_us = 1e6 * float(
            decode_floor_s(
                model.config,
                bench.ceilings,
                numbers,
                numbers * context,
                kv_bytes=maker.kv_cache.layers[0][0].itemsize,
                weight_bytes=1 if fp8 else 2,
            )[0]
        )
        bench.line(
            "decode step",
            goal=None if fp8 else "G8" if name == "Qwen3-0.6B" else "G9",
            model=name,
            quantization=quantization,
            kv_dtype=str(maker.kv_cache.layers[0][0].dtype),
            batch=batch,
            context=context,
            graph_us=graph_us,
            eager_us=eager_us,
            host_launch_us=host_us,
            floor_us=floor_us,
            over_floor=(graph_us or eager_us) / floor_us,
            graph_against_eager=difference,
        )
    _count_kernels(bench, maker, maker.decode_inputs(context=context, num_seqs=min(8, batches[-1])))


def _eager(bench: Bench, maker: StepMaker, inputs: StepInputs) -> tuple[float, float]:
    """Time a step launched from Python, and the launches alone."""
    eager_us = bench.time_us(lambda: maker.run_and_sample(inputs), repetitions=9)
    bench.synchronize()
    started_at_s = time.perf_counter()
    maker.run_and_sample(inputs)
    host_us = (time.perf_counter() - started_at_s) * 1e6
    bench.synchronize()
    return eager_us, host_us


def _replay_difference(maker: StepMaker, inputs: StepInputs) -> float:
    """Return the largest difference between the logits of a replayed and an eager step."""
    eager = maker.run(inputs).clone()
    graph = capture(lambda: maker.run(inputs))
    maker.run(inputs).zero_()
    graph.replay()
    torch.cuda.synchronize()
    return float((maker._logits[: len(eager)] - eager).abs().max())


def _count_kernels(bench: Bench, maker: StepMaker, inputs: StepInputs) -> None:
    """Count the kernels of a step, and name those that take the time."""
    if bench.device.type != "cuda":
        return
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        maker.run_and_sample(inputs)
        torch.cuda.synchronize()
    events = [event for event in profiled.key_averages() if event.device_time_total > 0]
    events.sort(key=lambda event: -event.device_time_total)
    bench.line(
        "kernels of a step",
        kernels=sum(event.count for event in events),
        longest=[(e.key[:60], e.count, round(e.device_time_total)) for e in events[:8]],
    )
