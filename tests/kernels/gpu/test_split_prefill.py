"""Prefill attention whose keys are divided among programs: on a GPU, or interpreted without one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from .test_attention import (
    DEVICE,
    MIXED_QUERY_LENS,
    MIXED_SEQ_LENS,
    Case,
    _fresh_memory_is_poisoned,
    _interpreted,
    assert_close,
    make_case,
)

pytest.importorskip("triton", reason="triton is not installed; `make setup` installs it on Linux")
from batchmill.kernels.gpu import decode_attention, paged_attention, split_prefill
from batchmill.kernels.gpu.prefill_plan import PrefillPlan, plan_prefill

__all__ = ["_fresh_memory_is_poisoned", "_interpreted"]  # fixtures of this module's tests too

SINKS = [-1e4, -1.0, 0.0, 1.5, 4.0, 1e4]


def run(case: Case, num_programs: int, **options: Any) -> Tensor:
    """Run with this number of programs for prompts."""
    return case.run(num_prefill_programs=num_programs, **options)


def watch_scratch(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, ...]]:
    """Return a list that gets the scratch of each launch."""
    kept: list[tuple[Tensor, ...]] = []
    allocate = decode_attention.split_scratch

    def watched(*args: Any) -> tuple[Tensor, ...]:
        kept.append(allocate(*args))
        return kept[-1]

    monkeypatch.setattr(split_prefill, "split_scratch", watched)
    return kept


def test_every_program_works_on_a_short_chunk_after_a_long_prefix(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One query tile and two KV heads, which two programs walked before, each all 1,000 keys."""
    scratch = watch_scratch(monkeypatch)
    case = make_case([5], [1000], num_kv_heads=2, group=3)
    assert_close(run(case, 14), case.want())
    _, partial_lse, split_pair, _ = scratch[0]
    parts = partial_lse.view(14, 2, -1)[:, :, 0].isfinite()
    assert parts.any(1).sum() == 14, "a program without a partial result has done nothing"
    assert (split_pair >= 0).sum() == 2, "each pair is merged once"


@pytest.mark.parametrize("num_programs", [9, 40])
@pytest.mark.parametrize("window", [None, 7, 33])
@pytest.mark.parametrize("sinks", [None, SINKS], ids=["plain", "sinks"])
def test_windows_and_sinks_match(
    num_programs: int, window: int | None, sinks: list[float] | None
) -> None:
    case = make_case(MIXED_QUERY_LENS, MIXED_SEQ_LENS)
    of_heads = None if sinks is None else torch.tensor(sinks, device=DEVICE)
    # 117 tokens beyond one for each sequence are 11 query tiles of 2 KV heads: 9 programs would
    # all have work, 40 would not.
    got = run(case, num_programs, window=window, sinks=of_heads)
    assert_close(got, case.want(window=window, sinks=of_heads))


@pytest.mark.parametrize(
    ("head_dim", "block_size", "group", "dtype"),
    [
        (64, 32, 1, torch.float16),
        (80, 16, 4, torch.float32),
        (128, 64, 8, torch.float16),
        (256, 7, 3, torch.float32),
        (64, 16, 20, torch.bfloat16),
    ],
    ids=str,
)
def test_head_sizes_block_sizes_groups_and_types_match(
    head_dim: int, block_size: int, group: int, dtype: torch.dtype
) -> None:
    case = make_case(
        *([1, 9, 2], [40, 171, 130]),
        num_kv_heads=1,
        group=group,
        head_dim=head_dim,
        block_size=block_size,
        dtype=dtype,
    )
    assert_close(run(case, 13), case.want())


def test_an_eight_bit_cache_is_read_with_its_scales() -> None:
    dtype = torch.float16
    case = make_case([3, 11], [150, 41], dtype=dtype)
    stored = replace(
        case,
        k_cache=(case.k_cache / 0.5).to(torch.float8_e4m3fn),
        v_cache=(case.v_cache / 0.25).to(torch.float8_e4m3fn),
    )
    seen = replace(
        case, k_cache=stored.k_cache.to(dtype) * 0.5, v_cache=stored.v_cache.to(dtype) * 0.25
    )
    assert_close(run(stored, 11, k_scale=0.5, v_scale=0.25), seen.want())


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter's maximum of NaN
@pytest.mark.parametrize("num_programs", [9, 40])
def test_a_sequence_that_is_not_finite_affects_no_other(num_programs: int) -> None:
    case = make_case([4, 5], [70, 300])
    want = run(case, num_programs)
    case.q[1] = torch.nan
    got = run(case, num_programs)
    assert got[1].isnan().all()
    rest = [0, 2, 3, *range(4, 9)]
    torch.testing.assert_close(got[rest], want[rest], atol=0, rtol=0)


# Attention writes nothing to rows of padding, so they hold anything.
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_sequences_and_tokens_of_padding_change_nothing() -> None:
    """As in a recorded step: more tokens than sequences hold, and sequences of none."""
    case = make_case([4, 9], [100, 200])
    more = torch.full_like(case.q[:8], torch.nan)
    padded = replace(
        case,
        q=torch.cat((case.q, more)),
        block_tables=torch.cat((case.block_tables, torch.zeros_like(case.block_tables))),
        cu_seqlens_q=torch.cat((case.cu_seqlens_q, case.cu_seqlens_q[-1:].repeat(2))),
        seq_lens=torch.cat((case.seq_lens, torch.zeros_like(case.seq_lens))),
    )
    assert_close(run(padded, 17)[:13], case.want())


def plan_of(query_lens: Tensor, seq_lens: Tensor, window: int) -> PrefillPlan:
    starts = torch.cat((torch.zeros(1, dtype=torch.int64), query_lens.cumsum(0)))
    return plan_prefill(
        starts.to(DEVICE, torch.int32),
        seq_lens.to(DEVICE, torch.int32),
        num_tokens=int(starts[-1]),
        queries_per_tile=32,
        tile_tokens=64,
        sliding_window=window,
    )


@pytest.mark.parametrize("window", [0, 50])
def test_a_plan_of_many_sequences_has_all_their_query_tiles(window: int) -> None:
    generator = torch.Generator().manual_seed(0)
    query_lens = torch.randint(0, 90, (700,), generator=generator)  # more than one pass of slots
    seq_lens = query_lens + torch.randint(0, 300, (700,), generator=generator)
    plan = plan_of(query_lens, seq_lens, window)
    wanted, tiles = [], [0]
    for seq, (queries, length) in enumerate(
        zip(query_lens.tolist(), seq_lens.tolist(), strict=True)
    ):
        for first in range(0, queries if queries > 1 else 0, 32):
            position = length - queries + first
            skipped = max(position - window + 1, 0) // 64 if window else 0
            tiles.append(tiles[-1] + -(-min(position + 32, length) // 64) - skipped)
            wanted.append((seq, first))
    count = int(plan.num_active)
    pairs = zip(plan.tile_seqs[:count].tolist(), plan.first_queries[:count].tolist(), strict=True)
    assert list(pairs) == wanted
    assert plan.cu_tiles[: count + 1].tolist() == tiles


def test_many_query_tokens_take_the_kernel_that_divides_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scratch = watch_scratch(monkeypatch)
    case = make_case([60], [60])
    run(case, 2)
    assert not scratch
    monkeypatch.setattr(paged_attention, "num_multiprocessors", lambda device: 132)
    case.run()
    assert len(scratch) == 1
