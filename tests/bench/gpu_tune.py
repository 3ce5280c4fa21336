"""Try tiles for the attention kernels, and print the best rows for the table.

`kernels/gpu/attention_tuning.py` holds the table; nothing is tuned while serving. A candidate that
does not compile or run (with too much shared memory, for example) is reported and skipped.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import torch
from gpu_kernels import BLOCK_SIZE, paged
from gpu_report import Bench, OutOfTime

from batchmill.kernels.gpu.attention_tuning import (
    AttentionTuning,
    DecodeTuning,
    PrefillTuning,
    attention_tuning,
)
from batchmill.kernels.gpu.launch import architecture
from batchmill.kernels.gpu.paged_attention import paged_attention_triton, plan_step
from batchmill.kernels.reference.fp8_rows import FP8

#: (head_dim, cache type, query heads, KV heads), one per row of the table.
_KINDS = (
    (128, None, 32, 8),
    (128, FP8, 32, 8),
    (64, None, 9, 3),
    (256, None, 16, 16),
)
#: Decode batches that judge a row, by the mean of their ratios to the present tiles.
_DECODES = ([1024] * 64, [16384], [1024] * 256, [300, 900, 1500, 2000] * 16)
_PREFILLS = ([8192], [558] * 28)


def decode_candidates(shipped: DecodeTuning, *, toy: bool) -> Iterator[DecodeTuning]:
    """Yield the present tiles, then others near them and those of other engines."""
    yield shipped
    if toy:
        return
    for tokens, warps, stages, programs in (
        (16, 2, 4, 4), (16, 2, 4, 6), (32, 2, 3, 4), (32, 4, 3, 3), (32, 4, 4, 4), (32, 4, 6, 2),
        (64, 4, 2, 3), (64, 4, 3, 2), (64, 4, 4, 2), (64, 4, 5, 2), (64, 8, 3, 2), (64, 2, 3, 3),
        (128, 4, 2, 1), (128, 4, 3, 1), (128, 8, 2, 2), (128, 8, 3, 1),
    ):  # fmt: skip
        yield DecodeTuning(tokens, num_warps=warps, num_stages=stages, programs_per_sm=programs)


def prefill_candidates(shipped: PrefillTuning, *, toy: bool) -> Iterator[PrefillTuning]:
    """Yield tall tiles for the warp-group instruction, with more or fewer keys at a time."""
    yield shipped
    if toy:
        return
    for rows, tokens, warps, stages in (
        (64, 64, 4, 3), (64, 128, 4, 2), (64, 64, 4, 4), (128, 32, 8, 4), (128, 64, 8, 2),
        (128, 64, 8, 4), (128, 128, 8, 2), (128, 128, 8, 3), (256, 64, 16, 3), (64, 32, 4, 4),
    ):  # fmt: skip
        yield PrefillTuning(rows, tokens, num_warps=warps, num_stages=stages)


def tune(bench: Bench) -> None:
    """Print one line per candidate, and one with the best per kind of model."""
    arch = architecture(bench.device)
    kinds = ((16, None, 4, 2),) if bench.toy else _KINDS
    for head_dim, kv_dtype, num_heads, num_kv_heads in kinds:
        item = 1 if kv_dtype is not None else 2
        shipped = attention_tuning(
            arch,
            head_dim,
            item,
            block_size=16 if bench.toy else BLOCK_SIZE,
            group=num_heads // num_kv_heads,
        )
        label = {"head_dim": head_dim, "kv_bytes": item, "group": num_heads // num_kv_heads}
        make = partial(
            paged,
            bench,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            kv_dtype=kv_dtype,
            num_layers=2,
        )
        lens = ([40, 9],) if bench.toy else _DECODES
        decodes = [make([1] * len(seq_lens), seq_lens) for seq_lens in lens]
        decode = _best(
            bench,
            label,
            decodes,
            [
                replace(shipped, decode=each)
                for each in decode_candidates(shipped.decode, toy=bench.toy)
            ],
            "decode",
        )
        prefills = [make(each, each) for each in (([20],) if bench.toy else _PREFILLS)]
        prefill = _best(
            bench,
            label,
            prefills,
            [
                replace(shipped, prefill=each)
                for each in prefill_candidates(shipped.prefill, toy=bench.toy)
            ],
            "prefill",
        )
        bench.line(
            "tuned row",
            arch=arch,
            **label,
            decode=asdict(decode.decode),
            prefill=asdict(prefill.prefill),
        )


def _best(
    bench: Bench,
    label: dict[str, int],
    batches: list[Any],
    candidates: list[AttentionTuning],
    part: str,
) -> AttentionTuning:
    """Return the candidate with the least mean ratio to the first, the present tiles."""
    shipped: list[float] = []
    best, best_ratio = candidates[0], 1.0
    for candidate in candidates:
        bench.check_time()
        try:
            times = [_time_us(bench, batch, candidate, part) for batch in batches]
        except OutOfTime:
            raise
        except Exception as error:  # Triton has many errors for tiles that do not fit
            if bench.device_is_lost():
                raise
            bench.line(
                "refused", part=part, tiles=asdict(getattr(candidate, part)), why=repr(error)[:150]
            )
            continue
        shipped = shipped or times
        ratio = sum(ours / theirs for ours, theirs in zip(times, shipped, strict=True)) / len(times)
        tiles = asdict(getattr(candidate, part))
        bench.line("candidate", part=part, **label, tiles=tiles, us=times, ratio=ratio)
        if ratio < best_ratio:
            best, best_ratio = candidate, ratio
    return best


def _time_us(bench: Bench, batch: Any, tuning: AttentionTuning, part: str) -> float:
    only_decodes = part == "decode"
    index = (batch.tables, batch.cu_seqlens_q, batch.seq_lens)
    plan = plan_step(*index[1:], batch.layers[0][0], only_decodes=only_decodes, tuning=tuning)
    scale = batch.q.shape[-1] ** -0.5

    def attend(keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        return paged_attention_triton(
            batch.q, keys, values, *index, scale, plan=plan, tuning=tuning
        )

    return bench.time_replayed_us([partial(attend, *kv) for kv in batch.layers], rounds=5)
