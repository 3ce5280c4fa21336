"""Compare every kernel with the reference on the device; then whole models.

The reference runs in float64 (for sampling in float32, which has to agree token by token). Unused
cache slots hold NaN.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from gpu_floors import recipe_a
from gpu_fp8 import fp8_model, fp8_products
from gpu_models import TOY, engine_has, make_engine, random_model, random_weights
from gpu_recipes import prompts_of
from gpu_report import Bench, OutOfTime
from torch import Tensor

from batchmill.engine import SamplingParams
from batchmill.kernels.ops.dispatch import Backend
from batchmill.kernels.ops.expert_linear import multiply_experts
from batchmill.kernels.ops.experts import combine_experts, route_experts
from batchmill.kernels.ops.gated_activation import gelu_and_mul, silu_and_mul
from batchmill.kernels.ops.paged_attention import paged_attention
from batchmill.kernels.ops.rms_norm import add_rms_norm, rms_norm
from batchmill.kernels.ops.rope_and_cache import rope_and_cache
from batchmill.kernels.ops.sample import sample
from batchmill.kernels.reference.fp8_rows import FP8

#: The errors of one backend of an op in one number format, case by case.
Errors = Callable[[Bench, torch.dtype, Backend], Iterator[float]]
#: Largest error relative to the largest number of the reference: rounding of weights and results
#: to 24, 11 and 8 bits, some of it twice.
TOLERANCES = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}


def relative_error(got: Tensor, want: Tensor) -> float:
    """Return the largest difference relative to `want`; infinite if `got` is not finite."""
    if not bool(torch.isfinite(got.float()).all()):
        return math.inf
    scale = want.double().abs().max().clamp(min=1e-12)
    return float((got.double() - want.double()).abs().max() / scale)


def correctness(bench: Bench) -> None:
    """Check whole models, then each op: one line per op and format with the largest error.

    A check that raises is wrong and the others still run, unless the device is lost.
    """
    wrong: list[str] = []
    for part in (_engine_tokens, _whole_model, _sampling, _experts, fp8_products, fp8_model):
        _attempt(bench, wrong, part.__name__.strip("_"), partial(part, bench, wrong))
    dtypes = [torch.float16] if bench.toy else [torch.bfloat16, torch.float16, torch.float32]
    for dtype, (op, errors) in itertools.product(dtypes, OPS.items()):
        check = partial(_op, bench, wrong, dtype, op, errors)
        _attempt(bench, wrong, f"{op} {dtype}", check)
    if wrong:
        raise AssertionError(f"wrong: {', '.join(wrong)}")


def _attempt(bench: Bench, wrong: list[str], name: str, check: Callable[[], None]) -> None:
    """Run one check; report an exception and count it as wrong."""
    bench.check_time()
    try:
        check()
    except OutOfTime:
        raise
    except Exception as error:
        bench.line("raised", what=name, error=repr(error)[:500])
        wrong.append(name)
        if bench.device_is_lost():
            raise


def _op(bench: Bench, wrong: list[str], dtype: torch.dtype, op: str, errors: Errors) -> None:
    worst, cases = 0.0, 0
    for error in errors(bench, dtype, "triton"):
        worst, cases = max(worst, error), cases + 1
    right = worst <= TOLERANCES[dtype]
    bench.line("op", op=op, dtype=str(dtype), max_error=worst, cases=cases, right=right)
    wrong += [] if right else [f"{op} {dtype}"]


@dataclass(frozen=True, slots=True)
class AttentionCase:
    """Shapes of one batch."""

    query_lens: tuple[int, ...]
    seq_lens: tuple[int, ...]
    group: int
    head_dim: int
    block_size: int = 16
    num_kv_heads: int = 2
    window: int | None = None
    kv_dtype: torch.dtype | None = None


#: Decodes at the edges of tiles and blocks, a chunk after a prefix, a whole prompt.
_DECODES = (1, 63, 64, 65, 1, 300, 1025)
_MIXED = ((1, 1, 37, 130, 2), (70, 1, 37, 190, 65))


def _attention_cases(dtype: torch.dtype, *, toy: bool) -> list[AttentionCase]:
    """Return cases for every branch of the kernels; few, because each compiles for seconds."""
    if toy:
        return [
            AttentionCase((1, 1, 5), (17, 40, 21), 3, 64),
            AttentionCase((1, 3), (33, 9), 2, 64, window=8, kv_dtype=FP8),
        ]
    ones = (1,) * len(_DECODES)
    common = [
        AttentionCase(*_MIXED, 4, 128, block_size=64),
        AttentionCase(ones, _DECODES, 3, 64),
    ]
    if dtype != torch.bfloat16:
        return common
    return [
        *common,
        AttentionCase(ones, _DECODES, 4, 128),
        AttentionCase(*_MIXED, 4, 128, block_size=64, kv_dtype=FP8),
        AttentionCase(*_MIXED, 2, 128, block_size=64, num_kv_heads=8),
        AttentionCase(*_MIXED, 1, 64),
        AttentionCase(*_MIXED, 5, 128, block_size=64),
        AttentionCase(*_MIXED, 8, 128, kv_dtype=FP8),
        AttentionCase(*_MIXED, 4, 128, window=50),
        AttentionCase(*_MIXED, 4, 80, kv_dtype=FP8),
        AttentionCase(*_MIXED, 2, 256),
        AttentionCase((1,) * 300, tuple(range(1, 901, 3)), 4, 128, num_kv_heads=8, block_size=64),
        AttentionCase((700,), (3000,), 4, 128, num_kv_heads=8, block_size=64),
    ]


def attention_batch(
    case: AttentionCase, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return queries, caches and index tensors, with blocks in shuffled order."""
    generator = torch.Generator().manual_seed(sum(case.seq_lens))
    needed = [-(-length // case.block_size) for length in case.seq_lens]
    order = torch.randperm(sum(needed) + 2, generator=generator).to(torch.int32)
    tables = torch.zeros(len(needed), max(needed), dtype=torch.int32)
    used = torch.zeros(len(order), case.block_size, dtype=torch.bool)
    start = 0
    for row, (count, length) in enumerate(zip(needed, case.seq_lens, strict=True)):
        blocks = order[start : start + count]
        tables[row, :count] = blocks
        slots = torch.arange(count * case.block_size).view(count, -1) < length
        used[blocks.long()] = slots
        start += count
    sizes = (2, *used.shape, case.num_kv_heads, case.head_dim)
    caches = torch.randn(sizes, generator=generator)
    caches[:, ~used] = math.nan
    num_heads = case.num_kv_heads * case.group
    q = torch.randn(sum(case.query_lens), num_heads, case.head_dim, generator=generator)
    k_cache, v_cache = caches.to(device, dtype).to(case.kv_dtype or dtype)
    cu_seqlens_q = torch.tensor([0, *case.query_lens]).cumsum(0).to(device, torch.int32)
    seq_lens = torch.tensor(case.seq_lens, dtype=torch.int32, device=device)
    return q.to(device, dtype), k_cache, v_cache, tables.to(device), cu_seqlens_q, seq_lens


def _attention(bench: Bench, dtype: torch.dtype, backend: Backend) -> Iterator[float]:
    for case in _attention_cases(dtype, toy=bench.toy):
        bench.check_time()
        if case.kv_dtype is not None and (dtype == torch.float32 or backend == "cpp"):
            continue  # an eight-bit cache is for half precision, and no C++ kernel reads it
        batch = attention_batch(case, dtype, bench.device)
        q, keys, values, tables, starts, lengths = batch
        if backend == "reference":  # it alone may read masked slots, so these must be finite
            keys, values = (each.float().nan_to_num().to(each.dtype) for each in (keys, values))
        window, index = case.window, (tables, starts, lengths, float(case.head_dim**-0.5))
        got = paged_attention(
            q, keys, values, *index, window=window, k_scale=0.5, v_scale=2.0, backend=backend
        )
        k_scale, v_scale = (0.5, 2.0) if case.kv_dtype is not None else (1.0, 1.0)
        keys, values = keys.double().nan_to_num() * k_scale, values.double().nan_to_num() * v_scale
        want = paged_attention(q.double(), keys, values, *index, window=window, backend="reference")
        yield relative_error(got, want)


def _rope_and_cache(bench: Bench, dtype: torch.dtype, backend: Backend) -> Iterator[float]:
    heads = [(3, 2, 64)] if bench.toy else [(4, 2, 64), (32, 8, 128), (9, 3, 80)]
    for (num_heads, num_kv_heads, head_dim), with_norms in itertools.product(heads, (False, True)):
        num_tokens, half = 7, head_dim // 2 - (8 if with_norms else 0)
        qkv = _normal(bench, dtype, num_tokens, (num_heads + 2 * num_kv_heads) * head_dim)
        angles = _normal(bench, torch.float32, num_tokens, half)
        slots = torch.tensor([5, 17, -1, 0, 31, 8, 9], device=bench.device)
        weight = _normal(bench, dtype, head_dim).abs()
        results = []
        compared: tuple[tuple[Backend, torch.dtype], ...] = (
            (backend, dtype),
            ("reference", torch.float64),
        )
        for each, wide in compared:
            caches = torch.zeros(2, 2, 16, num_kv_heads, head_dim, device=bench.device, dtype=wide)
            queries = rope_and_cache(
                *(qkv.clone().to(wide), caches[0], caches[1], slots, angles.cos(), angles.sin()),
                q_weight=weight.to(wide) if with_norms else None,
                k_weight=weight.to(wide) if with_norms else None,
                eps=1e-6,
                backend=each,
            )
            results.append((queries, caches))
        for got, want in zip(*results, strict=True):
            yield relative_error(got, want)


def _rms_norm(bench: Bench, dtype: torch.dtype, backend: Backend) -> Iterator[float]:
    for size in _row_sizes(bench):
        x, residual, weight = (_normal(bench, dtype, *rows, size) for rows in ((5,), (6,), ()))
        residual = residual[:5].clone()
        want = rms_norm(x.double(), weight.double(), 1e-6, backend="reference")
        yield relative_error(rms_norm(x, weight, 1e-6, backend=backend), want)
        summed = residual.clone()
        got = add_rms_norm(x, summed, weight, 1e-6, backend=backend)
        want = rms_norm((x + residual).double(), weight.double(), 1e-6, backend="reference")
        yield relative_error(got, want)
        yield relative_error(summed, x.double() + residual.double())


def _gated(op: Callable[..., Tensor]) -> Errors:
    def errors(bench: Bench, dtype: torch.dtype, backend: Backend) -> Iterator[float]:
        for size in _row_sizes(bench):
            x = _normal(bench, dtype, 5, size)
            yield relative_error(op(x, backend=backend), op(x.double(), backend="reference"))

    return errors


def _row_sizes(bench: Bench) -> tuple[int, ...]:
    return (96,) if bench.toy else (96, 1024, 4096, 16384)


#: Each yields the error of every case.
OPS: dict[str, Errors] = {
    "paged_attention": _attention,
    "rope_and_cache": _rope_and_cache,
    "rms_norm": _rms_norm,
    "silu_and_mul": _gated(silu_and_mul),
    "gelu_and_mul": _gated(gelu_and_mul),
}


def _sampling(bench: Bench, wrong: list[str]) -> None:
    share, num_rows = equal_tokens(bench, "triton")
    bench.line("op", op="sample", equal_tokens=share, rows=num_rows, right=share >= 0.99)
    wrong += [] if share >= 0.99 else ["sample"]


def _experts(bench: Bench, wrong: list[str]) -> None:
    """Compare a mixture's routing, products and sum of results with the reference's."""
    sizes = [(3, 6, 2)] if bench.toy else [(1, 128, 8), (64, 128, 8), (5000, 60, 4)]
    worst, right = 0.0, True
    for num_tokens, num_experts, num_chosen in sizes:
        logits = _normal(bench, torch.float32, num_tokens, num_experts)
        got, want = (
            route_experts(logits, num_chosen, normalise=True, backend=each)
            for each in ("triton", "reference")
        )
        computed = _normal(bench, torch.float32, num_tokens * num_chosen, 512)
        ours = combine_experts(computed, got, backend="triton")
        worst = max(
            worst, relative_error(ours, combine_experts(computed, want, backend="reference"))
        )
        right &= all(map(torch.equal, got[1:], want[1:]))
        x = _normal(bench, torch.float32, num_tokens, 256) / 16
        weight = _normal(bench, torch.float32, num_experts, 512, 256)
        products = [
            multiply_experts(x, weight, got.ends, rows=got.rows, activation="silu", backend=each)
            for each in ("triton", "reference")
        ]
        worst = max(worst, relative_error(*products))
    right &= worst <= TOLERANCES[torch.float32]
    bench.line("op", op="experts", max_error=worst, cases=len(sizes), right=right)
    wrong += [] if right else ["experts"]


def equal_tokens(bench: Bench, backend: Backend) -> tuple[float, int]:
    """Return the share of rows that get the reference's token, and the number of rows.

    The hashes are equal bit by bit, the logarithms to a few bits.
    """
    num_rows, vocab_size = (6, 300) if bench.toy else (256, 151936)
    logits = _normal(bench, torch.float32, num_rows, vocab_size) * 3
    rows = torch.arange(num_rows, device=bench.device)
    controls = (
        torch.where(rows % 4 == 0, 0.0, 0.7),
        torch.where(rows % 3 == 0, 50, 0),
        torch.where(rows % 2 == 0, 0.9, 1.0),
        torch.where(rows % 5 == 0, -3.0, -torch.inf),
        rows * 7919,
        rows,
    )
    got, want = (sample(logits, *controls, backend=each) for each in (backend, "reference"))
    return float((got == want).float().mean()), num_rows


def _whole_model(bench: Bench, wrong: list[str]) -> None:
    """Compare the logits of a small model by the kernels with the reference's in float32."""
    from gpu_steps import StepMaker

    from batchmill.engine.models.decoder import DecoderModel

    errors = {}
    for dtype in (torch.float32,) if bench.toy else (torch.float32, torch.bfloat16):
        logits = []
        compared: tuple[tuple[Backend, torch.dtype], ...] = (
            ("triton", dtype),
            ("reference", torch.float32),
        )
        for backend, wide in compared:
            weights = random_weights(TOY, torch.float32, bench.device)
            if wide != torch.float32:
                weights = random_weights(TOY, wide, bench.device)
            model = DecoderModel(TOY, weights, backend=backend)
            maker = StepMaker(model, block_size=16, num_seqs=3, num_tokens=40)
            logits.append(maker.run(maker.decode_inputs(context=21)).clone())
        errors[str(dtype)] = relative_error(*logits)
        if errors[str(dtype)] > TOLERANCES[dtype]:
            wrong.append(f"logits {dtype}")
    bench.line("logits of a small model", max_error=errors)


def _engine_tokens(bench: Bench, wrong: list[str]) -> None:
    """Measure the share of greedy tokens that do not depend on batch, graphs and overlap.

    It runs in float32. Rounding differs with the batch, so two equally likely tokens may change
    places; a step that is replayed on old data, or reads another request's blocks, changes nearly
    all tokens.
    """
    work = recipe_a(6, 3, 20) if bench.toy else recipe_a(40, 3, 60)
    prompts = prompts_of(work, TOY.vocab_size)
    variants: dict[str, dict[str, object]] = {
        "one by one": {"max_num_seqs": 1},
        "small steps": {"max_num_batched_tokens": 48},
        "no graphs, no overlap": {"decode_graphs": False, "overlap": False},
    }
    tokens = {}
    for name, settings in {"defaults": {}, **variants}.items():
        if not all(engine_has(each) for each in settings):
            continue
        model = random_model(TOY, bench.device, dtype=torch.float32)
        sizes = {"max_model_len": 128, "max_num_seqs": 32, "kv_cache_bytes": 2**24}
        engine = make_engine(model, toy=bench.toy, **{**sizes, **settings})
        params = [
            SamplingParams(temperature=0, max_tokens=length, ignore_eos=True, detokenize=False)
            for length in work.output_lens
        ]
        outputs = engine.generate(prompts, params)
        tokens[name] = [token for output in outputs for token in output.token_ids]
    for name in tokens.keys() - {"defaults"}:
        pairs = zip(tokens[name], tokens["defaults"], strict=True)
        share = sum(ours == theirs for ours, theirs in pairs) / len(tokens[name])
        bench.line("engine's tokens", against=name, equal=share, tokens=len(tokens[name]))
        wrong += [] if share >= 0.9 else [f"tokens of {name}"]


def _normal(bench: Bench, dtype: torch.dtype, *sizes: int) -> Tensor:
    generator = torch.Generator().manual_seed(sum(sizes))
    return torch.randn(sizes, generator=generator).to(bench.device, dtype)
