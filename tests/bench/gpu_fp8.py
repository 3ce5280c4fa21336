"""Products of eight-bit weights: their errors, and their speed relative to bf16 (K5)."""

from __future__ import annotations

import itertools
import math
from functools import partial

import torch
import torch.nn.functional as F
from gpu_models import TOY, random_weights
from gpu_report import Bench
from torch import Tensor

from batchmill.engine.models.decoder import DecoderModel
from batchmill.kernels.ops.dispatch import Backend
from batchmill.kernels.ops.fp8_fused import gated_activation_fp8, rms_norm_fp8
from batchmill.kernels.ops.fp8_linear import Fp8Linear
from batchmill.kernels.ops.fp8_quantize import quantize_fp8
from batchmill.kernels.ops.fp8_weight import quantize_fp8_weight
from batchmill.kernels.ops.gated_activation import silu_and_mul
from batchmill.kernels.ops.rms_norm import rms_norm
from batchmill.kernels.reference.fp8_rows import FP8, Fp8Rows

#: Largest error of a product relative to its largest number: two roundings to eight bits.
_PRODUCT_TOLERANCE = 3e-2
#: The same for a small model's logits: sometimes an activation is rounded to another value of three
#: bits, because earlier sums were rounded differently. A wrong scale yields 1 or more.
_LOGITS_TOLERANCE = 0.25
#: Least share of numbers that are quantized correctly; it is 1 if the device divides and multiplies
#: as expected.
_EQUAL_SHARE = 0.999


def has_fp8(bench: Bench) -> bool:
    """Return whether the device multiplies eight-bit floats; a CPU does, slowly."""
    if bench.device.type != "cuda":
        return True
    return torch.cuda.get_device_capability(bench.device) >= (8, 9)


def fp8_products(bench: Bench, wrong: list[str]) -> None:
    """Compare quantizing with plain torch, and products with float64 on the stored numbers."""
    if not has_fp8(bench):
        bench.line("op", op="fp8_linear", skipped="eight-bit floats begin at 8.9")
        return
    sizes = [(48, 96)] if bench.toy else [(1536, 576), (6144, 4096), (4096, 14336), (8192, 28672)]
    heights = (3,) if bench.toy else (1, 7, 64, 300)
    worst, equal, fused, isolated = 0.0, list[float](), list[float](), True
    for (size_out, size_in), height in itertools.product(sizes, heights):
        bench.check_time()
        weight = _normal(bench, size_out, size_in) * 0.02
        bias, x = _normal(bench, size_out, 1).flatten(), _normal(bench, height, size_in)
        if bench.toy:  # the interpreter rounds to eight bits wrongly: use numbers that have them
            x = x.clamp(-3, 3).to(FP8).to(x.dtype)
            x[:, 0] = 448
        linear = Fp8Linear(weight, bias, backend="triton")
        stored, rows = _stored(weight), quantize_fp8(x, backend="reference")
        want = _wide(rows) @ _wide(stored).T + bias.double()
        got = linear(x)
        worst = max(worst, float((got.double() - want).abs().max() / want.abs().max()))
        if not bool(got.isfinite().all()):
            worst = math.inf
        equal.append(_equal(quantize_fp8(x, backend="triton"), rows))
        fused += _fused(bench, height, size_in)
        x[height // 2, size_in // 2] = math.nan
        spoilt, rest = linear(x), torch.arange(height, device=x.device) != height // 2
        isolated &= bool(spoilt[height // 2].isnan().all())
        isolated &= torch.equal(spoilt[rest], got[rest])
    right = worst <= _PRODUCT_TOLERANCE and min(equal + fused) >= _EQUAL_SHARE and isolated
    bench.line(
        "op",
        op="fp8_linear",
        dtype=str(torch.bfloat16),
        max_error=worst,
        equal_numbers=min(equal),
        equal_fused=min(fused),
        nan_stays_in_its_row=isolated,
        cases=len(equal),
        right=right,
    )
    wrong += [] if right else ["fp8_linear"]


def _fused(bench: Bench, height: int, size: int) -> list[float]:
    """Return the shares of numbers that norms and gates quantize as if stored before."""
    x, gate_up = _normal(bench, height, size), _normal(bench, height, 2 * size)
    weight = _normal(bench, size, 1).flatten()
    normed = rms_norm(x, weight, 1e-6, backend="triton")
    gated = silu_and_mul(gate_up, backend="triton")
    pairs = (
        (rms_norm_fp8(None, x, weight, 1e-6, backend="triton"), normed),
        (gated_activation_fp8(gate_up, activation="silu", backend="triton"), gated),
    )
    return [_equal(got, quantize_fp8(stored, backend="triton")) for got, stored in pairs]


def _equal(got: Fp8Rows, want: Fp8Rows) -> float:
    """Return the share of equal numbers; 0 if a scale differs."""
    if not torch.equal(got.scales, want.scales):
        return 0.0
    return float((got.values.float() == want.values.float()).float().mean())


def fp8_model(bench: Bench, wrong: list[str]) -> None:
    """Compare the logits of a small model with fp8 weights by the kernels and by plain torch."""
    from gpu_steps import StepMaker

    if not has_fp8(bench):
        return
    logits = []
    backends: tuple[Backend, ...] = ("triton", "reference")
    for backend in backends:
        weights = random_weights(TOY, torch.bfloat16, bench.device)
        model = DecoderModel(TOY, weights, backend=backend, quantization="fp8")
        maker = StepMaker(model, block_size=16, num_seqs=3, num_tokens=40)
        logits.append(maker.run(maker.decode_inputs(context=21)).clone())
    error = float((logits[0] - logits[1]).abs().max() / logits[1].abs().max())
    bench.line("logits of a small model, fp8 weights", max_error=error)
    if not error <= _LOGITS_TOLERANCE:
        wrong.append("logits with fp8 weights")


def matrices(bench: Bench) -> None:
    """Measure K5: products of an 8B model's shapes for decode and prefill, bf16 and fp8.

    The fp8 time includes quantizing the activations, whose time alone is `quantize_us`.
    """
    sizes = {"qkv": (6144, 4096), "output": (4096, 4096)}
    sizes |= {"gate_up": (24576, 4096), "down": (4096, 12288)}
    if bench.toy:
        sizes = {"toy": (64, 32)}
    for name, (size_out, size_in) in sizes.items():
        weights = [_normal(bench, size_out, size_in, seed=seed) * 0.02 for seed in range(3)]
        fp8 = [Fp8Linear(weight, None, backend="triton") for weight in weights if has_fp8(bench)]
        for height in (1, 3) if bench.toy else (1, 16, 64, 256, 2048, 8192):
            x = _normal(bench, height, size_in)
            us = bench.time_replayed_us([partial(F.linear, x, weight) for weight in weights])
            flop, num_bytes = 2 * height * size_out * size_in, 2 * size_out * size_in
            floor_us = 1e6 * max(
                flop / bench.ceilings.bf16_flop_per_s, num_bytes / bench.ceilings.copy_bytes_per_s
            )
            shape = {"goal": "K5", "matrix": name, "rows": height}
            bench.line("bf16 linear", **shape, us=us, over_floor=us / floor_us)
            if not fp8:
                continue
            fp8_us = bench.time_replayed_us([partial(linear, x) for linear in fp8])
            quantize_us = bench.time_replayed_us([partial(quantize_fp8, x, backend="triton")] * 3)
            floor_us = 1e6 * max(
                flop / bench.ceilings.fp8_flop_per_s,
                num_bytes / 2 / bench.ceilings.copy_bytes_per_s,
            )
            bench.line(
                "fp8 linear",
                **shape,
                us=fp8_us,
                quantize_us=quantize_us,
                over_floor=fp8_us / floor_us,
                times_bf16=us / fp8_us,
            )


def _stored(weight: Tensor) -> Fp8Rows:
    quantized = quantize_fp8_weight(weight)
    return Fp8Rows(quantized.values, quantized.scales)


def _wide(rows: Fp8Rows) -> Tensor:
    return rows.values.double() * rows.scales


def _normal(bench: Bench, *sizes: int, seed: int = 0) -> Tensor:
    generator = torch.Generator(bench.device).manual_seed(sum(sizes) + seed)
    numbers = torch.randn(sizes, generator=generator, device=bench.device)
    return numbers.to(torch.bfloat16)
