"""The best rates of the device: memory, matrices, launches."""

from __future__ import annotations

import platform
from functools import partial

import torch
import torch.nn.functional as F
from gpu_report import Bench, Ceilings, capture

GIB = 1024**3


def ceilings(bench: Bench) -> None:
    """Measure the rates from which floors are computed, and describe the machine."""
    _describe(bench)
    copied = 2**22 if bench.toy else 4 * GIB
    source = torch.empty(copied, dtype=torch.uint8, device=bench.device).random_()
    target = torch.empty_like(source)
    copy_us = bench.time_us(partial(target.copy_, source), repetitions=9)
    read_us = bench.time_us(partial(torch.sum, source.view(torch.float32)), repetitions=9)
    rate = 2 * copied / copy_us * 1e6
    bench.line("copy", gb_per_s=rate / 1e9, read_gb_per_s=copied / read_us / 1e3, bytes=copied)
    del source, target
    flops = _matrix_rate(bench)
    bench.ceilings = Ceilings(rate, flops, _fp8_rate(bench) or flops, measured_here=True)
    if bench.device.type == "cuda":
        _launches(bench)


def _describe(bench: Bench) -> None:
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    try:
        import triton

        versions["triton"] = triton.__version__
    except ModuleNotFoundError:
        versions["triton"] = "not installed"
    if bench.device.type != "cuda":
        bench.line("machine", device="cpu", **versions)
        return
    properties = torch.cuda.get_device_properties(bench.device)
    bench.line(
        "machine",
        device=properties.name,
        gib=properties.total_memory / GIB,
        multiprocessors=properties.multi_processor_count,
        capability=f"{properties.major}.{properties.minor}",
        cuda=torch.version.cuda,
        **versions,
    )


def _matrix_rate(bench: Bench) -> float:
    """Return operations per second of a large bf16 product of random numbers."""
    size = 256 if bench.toy else 8192
    a = torch.randn(size, size, device=bench.device, dtype=torch.bfloat16)
    b = torch.randn(size, size, device=bench.device, dtype=torch.bfloat16)
    elapsed_us = bench.time_us(lambda: F.linear(a, b), repetitions=9)
    rate = 2 * size**3 / elapsed_us * 1e6
    bench.line("bf16 matrix product", tflop_per_s=rate / 1e12, size=size)
    return rate


def _fp8_rate(bench: Bench) -> float | None:
    """Measure float8 products with one scale, and with one per row and column as weights have.

    Returns operations per second of the faster; None if the device has no such product.
    """
    if bench.device.type != "cuda" or torch.cuda.get_device_capability(bench.device) < (8, 9):
        return None
    size = 8192
    a = torch.randn(size, size, device=bench.device).to(torch.float8_e4m3fn)
    b = torch.randn(size, size, device=bench.device).to(torch.float8_e4m3fn).t()
    one = torch.ones((), device=bench.device)
    many = torch.ones(size, 1, device=bench.device)
    rates = []
    for scales, (scale_a, scale_b) in {"one": (one, one), "rows": (many, many.t())}.items():
        product = partial(
            torch._scaled_mm,
            a,
            b,
            scale_a=scale_a,
            scale_b=scale_b.contiguous(),
            out_dtype=torch.bfloat16,
            use_fast_accum=True,
        )
        rates.append(2 * size**3 / bench.time_us(product, repetitions=9) * 1e6)
        rate = rates[-1] / 1e12
        bench.line("fp8 matrix product", tflop_per_s=rate, size=size, scales=scales)
    return max(rates)


def _launches(bench: Bench) -> None:
    """Measure the cost of an empty kernel, launched from Python and inside a CUDA graph."""
    x = torch.zeros(1, device=bench.device)

    def hundred() -> None:
        for _ in range(100):
            x.add_(1)

    graph = capture(hundred)
    bench.line(
        "launch",
        eager_us=bench.time_us(hundred) / 100,
        in_graph_us=bench.time_us(graph.replay) / 100,
        replay_of_one_us=bench.time_us(capture(lambda: x.add_(1)).replay),
    )
