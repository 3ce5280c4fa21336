"""Time each CPU kernel against its torch reference and against the machine's memory bandwidth.

    python tests/bench/cpu_kernels.py [--layers 30] [--rounds 5] [--op NAME]

Shapes are SmolLM2-135M's. Every layer has its own weights and KV cache, so the last-level cache
holds no more than with a real model. The two sides alternate and medians are printed: on a machine
with other work both columns grow, but their ratio changes little. `floor` is the longer of two
times: reading the op's bytes once at the bandwidth measured at the start, and its matrix products
at the rate of a large bf16 product, measured at the start too. More than 100 % comes from a
last-level cache, or from other work during the measurement. Int8 products, which quantize their
argument each time, are compared with the packed bf16 product, and their floor counts bytes only.
Sampling is compared with the numpy backend, which runs if there is no compiler.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from batchmill.kernels.ops.dispatch import Backend
from batchmill.kernels.ops.gated_activation import silu_and_mul
from batchmill.kernels.ops.int8_linear import make_int8_linear
from batchmill.kernels.ops.linear import Linear, make_linear
from batchmill.kernels.ops.paged_attention import paged_attention
from batchmill.kernels.ops.rms_norm import add_rms_norm
from batchmill.kernels.ops.sample import sample
from batchmill.kernels.reference.paged_attention_plan import AttentionPlan

VOCAB_SIZE = 49152
HIDDEN, INNER, NUM_HEADS, NUM_KV_HEADS, HEAD_DIM, BLOCK_SIZE = 576, 1536, 9, 3, 64, 16
DTYPE = torch.bfloat16
MAX_CACHE_BYTES = 3 * 2**30  # fewer layers if not all of them fit


@dataclass(frozen=True, slots=True)
class Case:
    """One line of the table: the calls of both sides, and the least work per layer."""

    name: str
    num_layers: int
    cpp: Callable[[], object]
    reference: Callable[[], object]
    num_bytes: int
    #: Additions and multiplications of its matrix products.
    num_flops: int = 0


def attention_cases(max_layers: int) -> Iterator[Case]:
    for num_seqs in (1, 8, 64):
        for context in (64, 256, 1024, 2048):
            name = f"decode B={num_seqs} ctx={context}"
            yield attention_case(name, [1] * num_seqs, context, max_layers)
    yield attention_case("prefill 512", [512], 512, max_layers)
    yield attention_case("prefill 256 of 2048", [256], 2048, max_layers)


def attention_case(name: str, query_lens: list[int], context: int, max_layers: int) -> Case:
    num_seqs, blocks = len(query_lens), -(-context // BLOCK_SIZE)
    shape = (num_seqs * blocks, BLOCK_SIZE, NUM_KV_HEADS, HEAD_DIM)
    layer_bytes = 2 * 2 * shape[0] * BLOCK_SIZE * NUM_KV_HEADS * HEAD_DIM
    num_layers = max(2, min(max_layers, MAX_CACHE_BYTES // layer_bytes))
    caches = [
        (torch.randn(shape).to(DTYPE), torch.randn(shape).to(DTYPE)) for _ in range(num_layers)
    ]
    tables = torch.randperm(shape[0]).to(torch.int32).view(num_seqs, blocks)
    starts = torch.tensor([0, *query_lens]).cumsum(0).to(torch.int32)
    seq_lens = torch.full((num_seqs,), context, dtype=torch.int32)
    q = torch.randn(sum(query_lens), NUM_HEADS, HEAD_DIM).to(DTYPE)
    plan = AttentionPlan(tables, starts, seq_lens, caches[0][0], window=None)

    def attend(backend: Backend) -> None:
        for k_cache, v_cache in caches:
            paged_attention(
                q, k_cache, v_cache, tables, starts, seq_lens, 0.125, plan=plan, backend=backend
            )

    return Case(
        name,
        num_layers,
        partial(attend, "cpp"),
        partial(attend, "reference"),
        2 * 2 * num_seqs * context * NUM_KV_HEADS * HEAD_DIM,
        # Causal: a query sees the keys up to its own position.
        4 * NUM_HEADS * HEAD_DIM * sum(n * context - n * (n - 1) // 2 for n in query_lens),
    )


def multiply(linears: list[Linear], x: Tensor) -> list[Tensor]:
    return [linear(x) for linear in linears]


def linear_cases(max_layers: int) -> Iterator[Case]:
    sizes = {"qkv": (960, HIDDEN), "gate_up": (2 * INNER, HIDDEN), "down": (HIDDEN, INNER)}
    for num_rows in (1, 8, 64, 512):
        for name, (out_features, in_features) in sizes.items():
            weights = [torch.randn(out_features, in_features).to(DTYPE) for _ in range(max_layers)]
            x = torch.randn(num_rows, in_features).to(DTYPE)
            packed = [make_linear(weight, backend="cpp") for weight in weights]
            quantized = [make_int8_linear(weight) for weight in weights]
            dense = [make_linear(weight, backend="reference") for weight in weights]
            yield Case(
                f"linear {name} M={num_rows}",
                max_layers,
                partial(multiply, packed, x),
                partial(multiply, dense, x),
                2 * out_features * in_features,
                2 * num_rows * out_features * in_features,
            )
            yield Case(
                f"int8 {name} M={num_rows}",
                max_layers,
                partial(multiply, quantized, x),
                partial(multiply, packed, x),
                out_features * in_features,
            )


def elementwise_cases(max_layers: int) -> Iterator[Case]:
    for num_rows in (1, 64, 512):
        x, residual = (torch.randn(num_rows, HIDDEN).to(DTYPE) for _ in range(2))
        gate_up, weight = torch.randn(num_rows, 2 * INNER).to(DTYPE), torch.ones(HIDDEN).to(DTYPE)

        def norm(backend: Backend, x: Tensor = x, r: Tensor = residual, w: Tensor = weight) -> None:
            for _ in range(max_layers):
                add_rms_norm(x, r, w, 1e-5, backend=backend)

        def gate(backend: Backend, gate_up: Tensor = gate_up) -> None:
            for _ in range(max_layers):
                silu_and_mul(gate_up, backend=backend)

        ops: tuple[tuple[str, Callable[[Backend], None], int], ...] = (
            ("add_rms_norm", norm, 4 * HIDDEN),
            ("silu", gate, 3 * INNER),
        )
        for name, compute, width in ops:
            yield Case(
                f"{name} T={num_rows}",
                max_layers,
                partial(compute, "cpp"),
                partial(compute, "reference"),
                2 * num_rows * width,
            )


def sample_cases(_: int) -> Iterator[Case]:
    for num_rows in (1, 64):
        logits = 2.5 * torch.randn(num_rows, VOCAB_SIZE)
        for name, heat, top_k, top_p in (
            ("greedy", 0.0, 0, 1.0),
            ("T=0.8", 0.8, 0, 1.0),
            ("T=0.8 top-k 50", 0.8, 50, 1.0),
            ("T=0.8 top-p 0.95", 0.8, 0, 0.95),
        ):
            controls = (
                torch.full((num_rows,), heat),
                torch.full((num_rows,), top_k),
                torch.full((num_rows,), top_p),
                torch.arange(num_rows),
                torch.arange(num_rows),
            )
            yield Case(
                f"sample {name} B={num_rows}",
                1,
                partial(sample, logits, *controls, backend="cpp"),
                partial(sample, logits, *controls, backend="numpy"),
                logits.nbytes,
            )


def read_bandwidth() -> float:
    """Return the bytes per second that all threads read, the best of many samples."""
    data = torch.ones(2**27)
    return 2**29 / min(seconds(lambda: data.sum()) for _ in range(10))


def matrix_rate() -> float:
    """Return operations per second of a large bf16 product, the best of some samples."""
    left, right = (torch.randn(1024, 1024).to(DTYPE) for _ in range(2))
    return 2 * 1024**3 / min(seconds(lambda: left @ right) for _ in range(20))


def seconds(run: Callable[[], object]) -> float:
    started_at_s = time.perf_counter()
    run()
    return time.perf_counter() - started_at_s


def main() -> None:
    arguments = _arguments()
    bandwidth, rate = read_bandwidth(), matrix_rate()
    print(
        f"{torch.get_num_threads()} threads, {bandwidth / 1e9:.1f} GB/s read, "
        f"{rate / 1e9:.0f} GFLOP/s bf16, ms a layer"
    )
    print(f"{'op':28}{'cpp':>9}{'reference':>11}{'ratio':>7}{'floor':>9}{'of floor':>10}")
    for make_cases in (sample_cases, attention_cases, linear_cases, elementwise_cases):
        for case in make_cases(arguments.layers):
            if arguments.op not in case.name:
                continue
            case.cpp()
            case.reference()
            rounds = [(seconds(case.cpp), seconds(case.reference)) for _ in range(arguments.rounds)]
            cpp, reference = (
                statistics.median(side) * 1e3 / case.num_layers
                for side in zip(*rounds, strict=True)
            )
            floor = max(case.num_bytes / bandwidth, case.num_flops / rate) * 1e3
            print(
                f"{case.name:28}{cpp:9.3f}{reference:11.3f}{reference / cpp:7.1f}{floor:9.3f}"
                f"{floor / cpp:10.0%}",
                flush=True,
            )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--op", default="", help="only lines whose name contains this")
    return parser.parse_args()


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    main()
