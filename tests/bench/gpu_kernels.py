"""Attention and sampling kernels, compared with the device's ceilings and torch's attention."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from gpu_floors import recipe_a
from gpu_report import Bench
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from batchmill.kernels.ops.dispatch import Backend
from batchmill.kernels.ops.paged_attention import paged_attention
from batchmill.kernels.ops.sample import sample
from batchmill.kernels.reference.fp8_rows import FP8
from batchmill.kernels.reference.paged_attention_plan import AttentionPlan

#: Layers whose caches are read in turn, so that none stays in the second-level cache (60 MB).
_NUM_LAYERS = 4
#: Tokens per block: a GPU's default, and a CPU's, which some set on a GPU too.
BLOCK_SIZE, SMALL_BLOCK_SIZE = 64, 16


@dataclass(frozen=True, slots=True)
class Paged:
    """A batch over several layers' caches."""

    q: Tensor
    layers: list[tuple[Tensor, Tensor]]
    tables: Tensor
    cu_seqlens_q: Tensor
    seq_lens: Tensor

    def calls(self, backend: Backend) -> list[Callable[[], Tensor]]:
        """Return one call per layer; the first makes the plan that the others share."""
        only_decodes = len(self.q) == len(self.seq_lens)
        index = (self.tables, self.cu_seqlens_q, self.seq_lens)
        plan = AttentionPlan(*index, self.layers[0][0], only_decodes=only_decodes)
        scale = self.q.shape[-1] ** -0.5

        def attend(keys: Tensor, values: Tensor) -> Tensor:
            return paged_attention(self.q, keys, values, *index, scale, plan=plan, backend=backend)

        return [partial(attend, *kv) for kv in self.layers]


def paged(
    bench: Bench,
    query_lens: list[int],
    seq_lens: list[int],
    *,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int = 128,
    kv_dtype: torch.dtype | None = None,
    num_layers: int = _NUM_LAYERS,
    block_size: int = BLOCK_SIZE,
) -> Paged:
    """Return a batch of random numbers in shuffled blocks."""
    device, dtype = bench.device, torch.float16 if bench.toy else torch.bfloat16
    block_size = min(block_size, SMALL_BLOCK_SIZE) if bench.toy else block_size
    needed = [-(-length // block_size) for length in seq_lens]
    order = torch.randperm(sum(needed), generator=torch.Generator().manual_seed(0))
    tables = torch.zeros(len(needed), max(needed), dtype=torch.int32)
    for row, (start, count) in enumerate(_spans(needed)):
        tables[row, :count] = order[start : start + count]
    sizes = (sum(needed), block_size, num_kv_heads, head_dim)
    layers = [
        tuple(torch.randn(sizes, device=device, dtype=dtype).to(kv_dtype or dtype) for _ in "kv")
        for _ in range(num_layers)
    ]
    return Paged(
        q=torch.randn(sum(query_lens), num_heads, head_dim, device=device, dtype=dtype),
        layers=layers,  # type: ignore[arg-type]
        tables=tables.to(device),
        cu_seqlens_q=torch.tensor([0, *query_lens]).cumsum(0).to(device, torch.int32),
        seq_lens=torch.tensor(seq_lens, device=device, dtype=torch.int32),
    )


def _spans(counts: list[int]) -> Iterator[tuple[int, int]]:
    start = 0
    for count in counts:
        yield start, count
        start += count


def decode_attention(bench: Bench) -> None:
    """Measure K1 and K2: the rate at which decode reads the cache, relative to copying."""
    ragged = [p + o // 2 for p, o in zip(*_recipe_lens(), strict=True)]
    cases = {
        "K1, B=64 ctx 1024": ([1024] * 64, None),
        "K1, B=64 ctx 1024, fp8 cache": ([1024] * 64, FP8),
        "K1, B=256 ctx 1024": ([1024] * 256, None),
        "K2, B=1 ctx 16384": ([16384], None),
        "K2, recipe A's lengths halfway": (ragged, None),
        "B=8 ctx 1024": ([1024] * 8, None),
        "B=32 ctx 4096": ([4096] * 32, None),
        "K1, B=64 ctx 1024, blocks of 16": ([1024] * 64, None),
        "K1, B=64 ctx 1024, fp8 cache, blocks of 16": ([1024] * 64, FP8),
    }
    if bench.toy:
        cases = {"toy": ([40, 17], None)}
    for name, (seq_lens, kv_dtype) in cases.items():
        heads = {"num_heads": 8, "num_kv_heads": 2} if bench.toy else {}
        heads = heads or {"num_heads": 32, "num_kv_heads": 8}
        layers = _NUM_LAYERS if sum(seq_lens) < 100_000 else 2
        batch = paged(
            bench,
            [1] * len(seq_lens),
            seq_lens,
            **heads,
            kv_dtype=kv_dtype,
            num_layers=layers,
            block_size=_block_size_of(name),
        )
        ours_us = bench.time_replayed_us(list(batch.calls("triton")))
        item = batch.layers[0][0].itemsize
        num_bytes = 2 * sum(seq_lens) * heads["num_kv_heads"] * 128 * item
        rate = num_bytes / ours_us * 1e6
        bench.line(
            "decode attention",
            case=name,
            us=ours_us,
            gb_per_s=rate / 1e9,
            of_copy_rate=rate / bench.ceilings.copy_bytes_per_s,
            mb=num_bytes / 1e6,
            sdpa_us=_sdpa_decode(bench, batch, seq_lens) if len(set(seq_lens)) == 1 else None,
        )


def _block_size_of(case: str) -> int:
    return SMALL_BLOCK_SIZE if case.endswith("blocks of 16") else BLOCK_SIZE


def _recipe_lens() -> tuple[list[int], list[int]]:
    work = recipe_a()
    return work.prompt_lens, work.output_lens


def _sdpa_decode(bench: Bench, batch: Paged, seq_lens: list[int]) -> float | None:
    """Time torch's flash attention on the same keys in contiguous memory, which is easier."""
    if bench.toy or batch.layers[0][0].dtype == FP8:
        return None
    num_seqs, length = len(seq_lens), seq_lens[0]
    q = batch.q[:, :, None]  # [B, heads, 1, dim]
    views = []
    for keys, values in batch.layers:
        pair = [x.view(num_seqs, length, *x.shape[2:]).transpose(1, 2) for x in (keys, values)]
        views.append(pair)

    def attend(keys: Tensor, values: Tensor) -> Tensor:
        with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION]):
            return F.scaled_dot_product_attention(q, keys, values, enable_gqa=True)

    try:
        return bench.time_replayed_us([partial(attend, *kv) for kv in views])
    except RuntimeError as error:
        bench.line("refused", kernel="sdpa, one query", error=str(error)[:200])
        return None


def prefill_attention(bench: Bench) -> None:
    """Measure K3: the arithmetic rate of causal prefill, of cuDNN and of flash attention."""
    cases = {
        "K3, 1 x 8192": [8192],
        "K3, 28 prompts of 558": [558] * 28,
        "1 x 2048": [2048],
        "8 x 2048": [2048] * 8,
        "K3, 1 x 8192, blocks of 16": [8192],
    }
    if bench.toy:
        cases = {"toy": [20]}
    num_heads, num_kv_heads = (4, 2) if bench.toy else (32, 8)
    for name, lens in cases.items():
        batch = paged(
            bench,
            lens,
            lens,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            num_layers=2,
            block_size=_block_size_of(name),
        )
        flop = sum(4 * length * length / 2 * num_heads * 128 for length in lens)
        ours_us = bench.time_replayed_us(batch.calls("triton"))
        others: dict[str, float | None] = {}
        if not bench.toy and len(set(lens)) == 1:
            others = _sdpa_prefill(bench, lens, num_heads, num_kv_heads)
        times_us = {"ours": ours_us, **others}
        rates = {f"{each}_tflop_per_s": flop / us / 1e6 for each, us in times_us.items() if us}
        best_us = min((us for us in others.values() if us), default=None)
        share = best_us / ours_us if best_us else None
        bench.line("prefill attention", case=name, us=ours_us, of_best_sdpa=share, **rates)


def _sdpa_prefill(
    bench: Bench, lens: list[int], num_heads: int, num_kv_heads: int
) -> dict[str, float | None]:
    """Time torch's kernels on contiguous queries, keys and values; None if one refuses."""
    sizes = (len(lens), 1, lens[0], 128)
    q, k, v = (
        torch.randn(sizes, device=bench.device, dtype=torch.bfloat16)
        .expand(-1, heads, -1, -1)
        .contiguous()
        for heads in (num_heads, num_kv_heads, num_kv_heads)
    )
    found: dict[str, float | None] = {}
    for name, backend in (
        ("cudnn", SDPBackend.CUDNN_ATTENTION),
        ("flash", SDPBackend.FLASH_ATTENTION),
    ):

        def attend(backend: SDPBackend = backend) -> Tensor:
            with sdpa_kernel(backend):
                return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)

        try:
            found[name] = bench.time_us(attend)
        except RuntimeError as error:
            bench.line("refused", kernel=name, error=str(error)[:200])
            found[name] = None
    return found


def sampler(bench: Bench) -> None:
    """Measure K4: sampling for 256 rows of 151,936 logits, and for one row."""
    vocab_size = 300 if bench.toy else 151936
    for num_rows in (3, 1) if bench.toy else (256, 1):
        _sampler(bench, num_rows, vocab_size)


def _sampler(bench: Bench, num_rows: int, vocab_size: int) -> None:
    logits = [torch.randn(num_rows, vocab_size, device=bench.device) for _ in range(2)]
    whole = torch.arange(num_rows, device=bench.device)
    heat = torch.full((num_rows,), 0.6, device=bench.device)
    off_k, off_p = torch.zeros_like(whole), torch.ones_like(heat)
    off_min_p = torch.full_like(heat, -torch.inf)
    kinds = {
        "temperature": (heat, off_k, off_p, off_min_p),
        "greedy": (torch.zeros_like(heat), off_k, off_p, off_min_p),
        "top-k 50, top-p 0.9": (heat, off_k + 50, off_p * 0.9, off_min_p),
        "min-p 0.05": (heat, off_k, off_p, off_min_p.clamp(min=-1.8)),
    }
    for name, controls in kinds.items():
        us = bench.time_replayed_us(
            [partial(sample, rows, *controls, whole, whole, backend="triton") for rows in logits]
        )
        rate = 4 * num_rows * vocab_size / us * 1e6
        share = rate / bench.ceilings.copy_bytes_per_s
        bench.line("sampler", goal="K4", controls=name, us=us, of_copy_rate=share, rows=num_rows)
