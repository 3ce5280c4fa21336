"""Whole recipes through the engine, compared with their floors."""

from __future__ import annotations

import gc
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gpu_floors import Work, decode_floor_s, recipe_a, work_floor_s
from gpu_models import engine_has, make_engine, named_shape, random_model
from gpu_report import Bench
from torch import Tensor

from batchmill.engine import Engine, EngineStats, SamplingParams
from batchmill.engine.memory.kv_cache import KVCache
from batchmill.engine.model_shape import ModelShape
from batchmill.engine.models.decoder import DecoderModel
from batchmill.engine.step.step_inputs import StepInputs

Section = Callable[[Bench], None]


def prompts_of(work: Work, vocab_size: int) -> list[list[int]]:
    """Return prompts of random tokens that begin differently, so that no blocks are shared."""
    rng = random.Random(1)
    most = min(vocab_size, 10000) - 1
    return [[rng.randint(0, most) for _ in range(length)] for length in work.prompt_lens]


def params_of(work: Work) -> list[SamplingParams]:
    """Return parameters with temperature 0.6, an exact number of tokens and no text."""
    return [
        SamplingParams(temperature=0.6, max_tokens=length, ignore_eos=True, detokenize=False)
        for length in work.output_lens
    ]


def generate_s(engine: Engine, work: Work, vocab_size: int) -> float:
    """Return the seconds of one `generate` over all requests, with an empty prefix cache."""
    engine.reset_prefix_cache()
    prompts, params = prompts_of(work, vocab_size), params_of(work)
    started_at_s = time.perf_counter()
    outputs = engine.generate(prompts, params)
    elapsed_s = time.perf_counter() - started_at_s
    made = [len(output.token_ids) for output in outputs]
    assert made == work.output_lens, "the engine made another number of tokens"
    return elapsed_s


def warm_up(engine: Engine, vocab_size: int, *, toy: bool) -> float:
    """Warm up kernels, graphs and every batch size; return the seconds."""
    started_at_s = time.perf_counter()
    lengths = list(range(2, 6)) if toy else [2 + 8 * (i % 8) for i in range(256)]
    work = Work([9] * len(lengths), lengths)
    engine.generate(prompts_of(work, vocab_size), params_of(work))
    return time.perf_counter() - started_at_s


def recipe(
    name: str,
    goal: str | None,
    *,
    rounds: int = 1,
    variants: dict[str, dict[str, Any]] | None = None,
    quantization: str | None = None,
) -> Section:
    """Return a section: recipe A on one shape, with default and with other settings."""

    def section(bench: Bench) -> None:
        config = named_shape(name, toy=bench.toy)
        dtype = torch.float32 if bench.toy else torch.bfloat16
        model = random_model(config, bench.device, dtype=dtype, quantization=quantization)
        work = recipe_a(6, 3, 20) if bench.toy else recipe_a()
        for variant, changes in (variants or {"defaults": {}}).items():
            settings = {"quantization": quantization, **changes}
            unknown = [each for each in settings if not engine_has(each)]
            if unknown:
                bench.line("recipe A", variant=variant, skipped=f"the engine has no {unknown}")
                continue
            if bench.device.type != "cuda" and settings.get("kv_cache_dtype") == "fp8":
                bench.line("recipe A", variant=variant, skipped="a CPU has no fp8 cache")
                continue
            bench.check_time()
            _one_recipe(bench, name, goal, model, work, rounds, variant, settings)
            give_back(bench)

    return section


def _one_recipe(
    bench: Bench,
    name: str,
    goal: str | None,
    model: Any,
    work: Work,
    rounds: int,
    variant: str,
    settings: dict[str, Any],
) -> None:
    started_at_s = time.perf_counter()
    engine = make_engine(model, toy=bench.toy, **settings)
    start_s = time.perf_counter() - started_at_s
    warm_s = warm_up(engine, model.config.vocab_size, toy=bench.toy)
    kv_bytes = 1 if settings.get("kv_cache_dtype") == "fp8" else 2
    weight_bytes = 1 if settings["quantization"] == "fp8" else 2
    floor_s = work_floor_s(
        model.config, bench.ceilings, work, kv_bytes=kv_bytes, weight_bytes=weight_bytes
    )
    for number in range(rounds):
        bench.check_time()
        before = engine.stats()
        elapsed_s = generate_s(engine, work, model.config.vocab_size)
        stats = engine.stats()
        tokens = sum(work.output_lens)
        bench.line(
            "recipe A",
            goal=goal,
            model=name,
            variant=variant,
            round=number,
            seconds=elapsed_s,
            output_tokens_per_s=tokens / elapsed_s,
            floor_s=floor_s,
            over_floor=elapsed_s / floor_s,
            requests=len(work.prompt_lens),
            prompt_tokens=sum(work.prompt_lens),
            output_tokens=tokens,
            counts=counter_differences(before, stats),
            step_p50_ms=stats.step_time_p50_s * 1000,
            step_p99_ms=stats.step_time_p99_s * 1000,
            start_s=start_s,
            warm_up_s=warm_s,
            kv_blocks=stats.num_blocks,
            peak_gib=_peak_gib(bench),
        )


def latency(bench: Bench) -> None:
    """Measure G6: Llama-3.1-8B, 8 requests, 32 tokens in and 128 out (as vLLM's CI does)."""
    config = named_shape("Llama-3.1-8B", toy=bench.toy)
    dtype = torch.float32 if bench.toy else torch.bfloat16
    model = random_model(config, bench.device, dtype=dtype)
    work = Work([4] * 2, [5] * 2) if bench.toy else Work([32] * 8, [128] * 8)
    engine = make_engine(model, toy=bench.toy)
    warm_up(engine, config.vocab_size, toy=bench.toy)
    times = [generate_s(engine, work, config.vocab_size) for _ in range(1 if bench.toy else 5)]
    floor_s = work_floor_s(config, bench.ceilings, work)
    bench.line(
        "latency",
        goal="G6",
        model="Llama-3.1-8B",
        median_s=statistics.median(times),
        least_s=min(times),
        floor_s=floor_s,
        over_floor=statistics.median(times) / floor_s,
    )


@dataclass(frozen=True, slots=True)
class Steady:
    """Requests that all decode, and the number of measured steps."""

    goal: str
    num_requests: int
    context: int
    num_steps: int
    kv_cache_dtype: str


def steady(bench: Bench) -> None:
    """Measure G5's and G7's batches in their steady state: output tokens per second.

    G5 is the shape of 1000 in and 1000 out with as many requests as fit a step, halfway through its
    outputs, with fp8 weights and cache; G7 is 32 requests halfway to 8192 tokens, in bf16.
    """
    g5, g7 = (256, 1000, 500), (32, 4000, 96)
    cases = {
        "fp8": [Steady("G5", *g5, "fp8"), Steady("G5, auto cache", *g5, "auto")],
        None: [Steady("G7", *g7, "auto"), Steady("G5, bf16 weights and cache", *g5, "auto")],
    }
    if bench.toy:
        cases = {each: [Steady("toy", 2, 9, 4, "auto")] for each in ("fp8", None)}
    config = named_shape("Llama-3.1-8B", toy=bench.toy)
    dtype = torch.float32 if bench.toy else torch.bfloat16
    for quantization, of_model in cases.items():
        bench.check_time(0 if bench.toy else 15)
        model = random_model(config, bench.device, dtype=dtype, quantization=quantization)
        for case in of_model:
            bench.check_time(0 if bench.toy else 10)
            _one_steady(bench, model, case, quantization)
            give_back(bench)
        del model
        give_back(bench)


def _one_steady(bench: Bench, model: DecoderModel, case: Steady, quantization: str | None) -> None:
    config = model.config
    engine = make_engine(
        model, toy=bench.toy, kv_cache_dtype=case.kv_cache_dtype, quantization=quantization
    )
    warm_up(engine, config.vocab_size, toy=bench.toy)
    engine.reset_prefix_cache()
    work = Work([case.context] * case.num_requests, [case.num_steps + 8] * case.num_requests)
    for number, (prompt, params) in enumerate(
        zip(prompts_of(work, config.vocab_size), params_of(work), strict=True)
    ):
        engine.add_request(f"r{number}", prompt, params)
    until_all_decode(engine, case.num_requests)
    before, started_at_s = engine.stats().num_generated_tokens, time.perf_counter()
    num_steps = case.num_steps // 2
    for _ in range(num_steps):
        engine.step()
    elapsed_s = time.perf_counter() - started_at_s
    made = engine.stats().num_generated_tokens - before
    counts = np.array([float(case.num_requests)])
    floor_s = decode_floor_s(
        config,
        bench.ceilings,
        counts,
        counts * (case.context + case.num_steps / 4),
        kv_bytes=1 if case.kv_cache_dtype == "fp8" else 2,
        weight_bytes=1 if quantization == "fp8" else 2,
    )
    bench.line(
        "steady decode",
        goal=case.goal,
        quantization=quantization,
        requests=case.num_requests,
        context=case.context,
        output_tokens_per_s=made / elapsed_s,
        step_ms=1000 * elapsed_s / num_steps,
        floor_ms=1000 * float(floor_s[0]),
        over_floor=elapsed_s / num_steps / float(floor_s[0]),
    )


def until_all_decode(engine: Engine, num_requests: int) -> None:
    """Step until every prompt is computed and each request has at least one token."""
    seen: set[str] = set()
    while len(seen) < num_requests:
        seen |= {output.request_id for output in engine.step()}


class StubModel:
    """A model that computes nothing, so that a step's time is that of host and sampler."""

    config = ModelShape(
        architecture="Stub",
        vocab_size=512,
        num_layers=1,
        num_kv_heads=1,
        head_dim=16,
        max_position_embeddings=40960,
    )
    dtype = torch.bfloat16

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def forward(self, inputs: StepInputs, kv_cache: KVCache, logits: Tensor) -> None:
        """Make all tokens equally likely."""
        logits.zero_()


def host_time(bench: Bench) -> None:
    """Measure H1: microseconds of a decode step over a model that computes nothing."""
    model: Any = StubModel(bench.device)
    for batch in (1, 3) if bench.toy else (1, 64, 256):
        num_steps = 6 if bench.toy else 300
        engine = make_engine(model, toy=bench.toy, kv_cache_bytes=2**20 if bench.toy else 2**30)
        work = Work([16] * batch, [num_steps + 20] * batch)
        for number, (prompt, params) in enumerate(
            zip(prompts_of(work, 512), params_of(work), strict=True)
        ):
            engine.add_request(f"r{number}", prompt, params)
        until_all_decode(engine, batch)
        times = []
        for _ in range(num_steps):
            started_at_s = time.perf_counter()
            engine.step()
            times.append((time.perf_counter() - started_at_s) * 1e6)
        bench.line(
            "host time of a step", goal="H1", batch=batch, median_us=statistics.median(times)
        )


def counter_differences(before: EngineStats, after: EngineStats) -> dict[str, int]:
    """Return the differences of an engine's counters between two snapshots, without zeros."""
    found: dict[str, int] = {}
    for name in after.__slots__:
        then, now = getattr(before, name), getattr(after, name)
        if isinstance(now, dict):
            found |= {f"{name}, {kind}": now[kind] - then.get(kind, 0) for kind in now}
        elif isinstance(now, int):
            found[name] = now - then
    return {name: count for name, count in found.items() if count}


def _peak_gib(bench: Bench) -> float | None:
    if bench.device.type != "cuda":
        return None
    return torch.cuda.max_memory_allocated(bench.device) / 1024**3


def give_back(bench: Bench) -> None:
    """Free the memory of dropped engines before the next one measures free memory."""
    gc.collect()
    if bench.device.type == "cuda":
        torch.cuda.empty_cache()
