"""Triton attention against the float64 reference: on a GPU, or interpreted without one."""

# Triton traces its kernels: no Python annotation would be true of their arguments.
# mypy: allow-untyped-defs

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from batchmill.kernels.ops.paged_attention import paged_attention

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton and the kernels are first imported
triton = pytest.importorskip(
    "triton", reason="triton is not installed; `make setup` installs it on Linux"
)
from batchmill.kernels.gpu.attention_tuning import attention_tuning  # noqa: E402
from batchmill.kernels.gpu.decode_attention import decode_attention_kernel  # noqa: E402
from batchmill.kernels.gpu.decode_plan import holder_of, stretch_of  # noqa: E402
from batchmill.kernels.gpu.launch import interpreted  # noqa: E402
from batchmill.kernels.gpu.paged_attention import paged_attention_triton, plan_step  # noqa: E402


@triton.jit
def share_out_kernel(firsts, stops, holders, total):
    program, programs = triton.language.program_id(0), triton.language.num_programs(0)
    first, stop = stretch_of(program, programs, total)
    triton.language.store(firsts + program, first)
    triton.language.store(stops + program, stop)
    for tile in range(first, stop):
        triton.language.store(holders + tile, holder_of(tile, programs, total))


os.environ.pop("TRITON_INTERPRET", None)

#: float32: sums of about a hundred products of order 1 in another order. float16 and bfloat16: the
#: softmax weights and the result are rounded to 11 and 8 bits.
TOLERANCE = {torch.float32: 4e-6, torch.float16: 3e-3, torch.bfloat16: 2.5e-2}


@pytest.fixture(autouse=True)
def _interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    if DEVICE == "cpu":  # Triton looks again when it first launches a kernel
        monkeypatch.setenv("TRITON_INTERPRET", "1")


@pytest.fixture(autouse=True)
def _fresh_memory_is_poisoned() -> Iterator[None]:
    """Make torch.empty return NaN (and the largest integers) instead of old contents."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@dataclass
class Case:
    q: Tensor
    k_cache: Tensor
    v_cache: Tensor
    block_tables: Tensor
    cu_seqlens_q: Tensor
    seq_lens: Tensor

    def run(
        self, *, window: int | None = None, num_programs: int | None = 7, **options: Any
    ) -> Tensor:
        """Run the Triton backend; 7 programs divide sequences at odd places."""
        return paged_attention_triton(
            self.q,
            self.k_cache,
            self.v_cache,
            self.block_tables,
            self.cu_seqlens_q,
            self.seq_lens,
            self.q.shape[-1] ** -0.5,
            window=window,
            num_programs=num_programs,
            **options,
        )

    def want(self, *, window: int | None = None, sinks: Tensor | None = None) -> Tensor:
        return paged_attention(
            self.q.double(),
            self.k_cache.double().nan_to_num(),
            self.v_cache.double().nan_to_num(),
            self.block_tables,
            self.cu_seqlens_q,
            self.seq_lens,
            self.q.shape[-1] ** -0.5,
            window=window,
            sinks=sinks,
            backend="reference",
        )


def make_case(
    query_lens: list[int],
    seq_lens: list[int],
    *,
    num_kv_heads: int = 2,
    group: int = 3,
    head_dim: int = 64,
    block_size: int = 16,
    dtype: torch.dtype = torch.float32,
) -> Case:
    """Return a case with shuffled blocks; every slot without a token is NaN."""
    generator = torch.Generator().manual_seed(1000 * len(query_lens) + sum(seq_lens))
    needed = [-(-length // block_size) for length in seq_lens]
    order = torch.randperm(sum(needed) + 2, generator=generator).tolist()
    tables = torch.full((len(seq_lens), max(needed) + 1), 2**30, dtype=torch.int32)
    caches = torch.full((2, len(order), block_size, num_kv_heads, head_dim), math.nan)
    for row, (count, length) in enumerate(zip(needed, seq_lens, strict=True)):
        blocks = [order.pop() for _ in range(count)]
        tables[row, :count] = torch.tensor(blocks)
        slots = [(blocks[key // block_size], key % block_size) for key in range(length)]
        for block, offset in slots:
            caches[:, block, offset] = torch.randn(2, num_kv_heads, head_dim, generator=generator)
    q = torch.randn(sum(query_lens), num_kv_heads * group, head_dim, generator=generator)
    k_cache, v_cache = caches.to(DEVICE, dtype)
    return Case(
        q=q.to(DEVICE, dtype),
        k_cache=k_cache.contiguous(),
        v_cache=v_cache.contiguous(),
        block_tables=tables.to(DEVICE),
        cu_seqlens_q=torch.tensor([0, *query_lens]).cumsum(0).to(DEVICE, torch.int32),
        seq_lens=torch.tensor(seq_lens, dtype=torch.int32, device=DEVICE),
    )


def assert_close(got: Tensor, want: Tensor) -> None:
    error = (got.double() - want).abs().max().item()
    assert error <= TOLERANCE[got.dtype], error


DECODES = [1, 300, 16, 64, 65, 17, 130]
MIXED_QUERY_LENS = [1, 1, 1, 60, 2, 17, 45]
MIXED_SEQ_LENS = [1, 200, 64, 60, 65, 40, 150]


def test_kernels_run_here_on_a_gpu_or_in_the_interpreter() -> None:
    assert DEVICE == "cuda" or interpreted(decode_attention_kernel), (
        "something imported triton before this module, without TRITON_INTERPRET=1"
    )


@pytest.mark.parametrize("group", [1, 2, 3, 4, 5, 8])
def test_ragged_decode_matches(group: int) -> None:
    case = make_case([1] * len(DECODES), DECODES, group=group)
    assert_close(case.run(), case.want())


@pytest.mark.parametrize(
    ("head_dim", "block_size", "dtype"),
    [
        (64, 32, torch.float16),
        (80, 16, torch.float32),
        (96, 64, torch.bfloat16),
        (128, 16, torch.float16),
        (256, 64, torch.float16),
        (256, 7, torch.float32),
    ],
    ids=str,
)
def test_head_sizes_block_sizes_and_types_match(
    head_dim: int, block_size: int, dtype: torch.dtype
) -> None:
    case = make_case(
        MIXED_QUERY_LENS, MIXED_SEQ_LENS, head_dim=head_dim, block_size=block_size, dtype=dtype
    )
    assert_close(case.run(), case.want())


@pytest.mark.parametrize("group", [1, 3, 4, 7, 8])
def test_mixed_prefill_and_decode_match(group: int) -> None:
    case = make_case(MIXED_QUERY_LENS, MIXED_SEQ_LENS, group=group, num_kv_heads=1)
    assert_close(case.run(), case.want())


@pytest.mark.parametrize("window", [None, 33])
@pytest.mark.parametrize("num_programs", [1, 7, 40])
def test_sinks_are_counted_once_however_keys_are_divided(
    num_programs: int, window: int | None
) -> None:
    sinks = torch.tensor([-1e4, -1.0, 0.0, 1.5, 4.0, 1e4], device=DEVICE)
    case = make_case(MIXED_QUERY_LENS, MIXED_SEQ_LENS)
    got = case.run(window=window, num_programs=num_programs, sinks=sinks)
    assert_close(got, case.want(window=window, sinks=sinks))
    assert got[:, 5].abs().max() == 0


def test_a_chunk_longer_than_several_tiles_matches() -> None:
    case = make_case([131], [387], group=4, num_kv_heads=1, dtype=torch.float16)
    assert_close(case.run(), case.want())


def test_more_query_heads_than_the_smallest_tile_match() -> None:
    case = make_case([1, 1, 20], [70, 3, 31], group=20, num_kv_heads=1)
    assert_close(case.run(), case.want())


@pytest.mark.parametrize("window", [1, 7, 64, 100, 1000])
def test_a_window_hides_older_keys(window: int) -> None:
    case = make_case(MIXED_QUERY_LENS, MIXED_SEQ_LENS, num_kv_heads=1)
    assert_close(case.run(window=window), case.want(window=window))


@pytest.mark.parametrize("num_programs", [1, 2, 13, 64])
def test_any_number_of_programs_has_the_same_attention(num_programs: int) -> None:
    case = make_case([1, 1, 1], [500, 30, 190], num_kv_heads=2, group=2)
    assert_close(case.run(num_programs=num_programs), case.want())


def test_the_default_number_of_programs_matches() -> None:
    case = make_case([1, 1, 9], [90, 30, 19])
    assert_close(case.run(num_programs=None), case.want())


@pytest.mark.parametrize(("total", "num_programs"), [(0, 3), (1, 3), (7, 3), (9, 3), (256, 396)])
def test_shares_of_programs_differ_by_one_tile_at_most(total: int, num_programs: int) -> None:
    firsts, stops = (torch.empty(num_programs, dtype=torch.int32, device=DEVICE) for _ in "ab")
    holders = torch.full((total + 1,), -1, dtype=torch.int32, device=DEVICE)
    share_out_kernel[(num_programs,)](firsts, stops, holders, total)
    shares = (stops - firsts).tolist()
    assert max(shares) - min(shares) <= 1
    assert [0, *stops.tolist()] == [*firsts.tolist(), total]
    wanted = [program for program, share in enumerate(shares) for _ in range(share)]
    assert holders[:total].tolist() == wanted


def test_padding_rows_become_zero_and_change_nothing_else() -> None:
    case = make_case([1, 1, 1, 1, 1], [40, 0, 200, 0, 0])
    got = case.run()
    assert torch.equal(got[[1, 3, 4]], torch.zeros_like(got[:3]))
    real = replace(
        case,
        q=case.q[[0, 2]],
        block_tables=case.block_tables[[0, 2]],
        cu_seqlens_q=case.cu_seqlens_q[:3],
        seq_lens=case.seq_lens[[0, 2]],
    )
    assert_close(got[[0, 2]], real.want())


def test_a_batch_of_only_padding_becomes_zero() -> None:
    case = make_case([1, 1], [16, 16])
    case.seq_lens.zero_()
    assert torch.equal(case.run(), torch.zeros_like(case.q))


def test_one_plan_serves_all_layers() -> None:
    case = make_case([1] * len(DECODES), DECODES)
    plan = plan_step(case.cu_seqlens_q, case.seq_lens, case.k_cache, only_decodes=True)
    first = case.run(plan=plan)
    assert torch.equal(first, case.run(plan=plan))
    assert torch.equal(first, case.run())


def test_a_plan_for_another_window_is_refused() -> None:
    case = make_case([1], [20])
    plan = plan_step(case.cu_seqlens_q, case.seq_lens, case.k_cache, window=8)
    with pytest.raises(ValueError, match="plan was made for window 8"):
        case.run(plan=plan)


def test_a_plan_of_many_sequences_is_a_running_count_of_tiles() -> None:
    generator = torch.Generator().manual_seed(0)
    seq_lens = torch.randint(0, 300, (2500,), generator=generator)  # three passes of 1024
    query_lens = torch.randint(0, 3, (2500,), generator=generator)
    cu_seqlens_q = torch.cat((torch.zeros(1, dtype=torch.int64), query_lens.cumsum(0)))
    plan = plan_step(
        cu_seqlens_q.to(DEVICE, torch.int32),
        seq_lens.to(DEVICE, torch.int32),
        torch.empty(1, 16, 1, 64, dtype=torch.float16, device=DEVICE),
    )
    tiles = -(-seq_lens // plan.tile_tokens)
    active = ((query_lens == 1) & (tiles > 0)).nonzero()[:, 0]
    count = int(plan.num_active)
    assert count == len(active)
    assert torch.equal(plan.active_seqs[:count].cpu().long(), active)
    want = torch.cat((torch.zeros(1, dtype=torch.int64), tiles[active].cumsum(0)))
    assert torch.equal(plan.cu_tiles[: count + 1].cpu().long(), want)


@pytest.mark.nightly
def test_queries_may_be_a_view_of_a_fused_projection() -> None:
    case = make_case(MIXED_QUERY_LENS, MIXED_SEQ_LENS)
    want = case.run()
    fused = torch.cat((case.q, torch.full_like(case.q, math.nan)), dim=1)
    assert torch.equal(replace(case, q=fused[:, : case.q.shape[1]]).run(), want)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("has_sinks", [False, True])
def test_an_eight_bit_cache_is_read_with_its_scales(dtype: torch.dtype, has_sinks: bool) -> None:
    # Scores of nothing are not scaled: those of keys are, before they are compared.
    sinks = torch.tensor([-1e4, -1.0, 0.0, 1.5, 4.0, 1e4], device=DEVICE) if has_sinks else None
    case = make_case(MIXED_QUERY_LENS, MIXED_SEQ_LENS, dtype=dtype)
    stored = replace(
        case,
        k_cache=(case.k_cache / 0.5).to(torch.float8_e4m3fn),
        v_cache=(case.v_cache / 0.25).to(torch.float8_e4m3fn),
    )
    seen = replace(
        case, k_cache=stored.k_cache.to(dtype) * 0.5, v_cache=stored.v_cache.to(dtype) * 0.25
    )
    assert_close(stored.run(k_scale=0.5, v_scale=0.25, sinks=sinks), seen.want(sinks=sinks))


def test_a_query_beyond_float16_stays_finite_with_an_eight_bit_cache() -> None:
    case = make_case(MIXED_QUERY_LENS, MIXED_SEQ_LENS, dtype=torch.bfloat16)
    case = replace(case, q=case.q * 1e38, k_cache=case.k_cache.to(torch.float8_e4m3fn))
    case = replace(case, v_cache=case.v_cache.to(torch.float8_e4m3fn))
    assert torch.isfinite(case.run()).all()


@pytest.mark.nightly
def test_other_shipped_tiles_have_the_same_attention() -> None:
    case = make_case(MIXED_QUERY_LENS, MIXED_SEQ_LENS, head_dim=128, dtype=torch.float16)
    for arch in (80, 89):
        tuning = attention_tuning(arch, 128, 2, block_size=16)
        assert_close(case.run(tuning=tuning), case.want())


def test_a_rotated_cache_is_refused() -> None:
    case = make_case([1], [20])
    case.k_cache = case.k_cache.transpose(0, 1).contiguous().transpose(0, 1)
    with pytest.raises(ValueError, match="k_cache must be contiguous"):
        case.run()


def test_heads_too_wide_for_any_tile_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="head_dim is 512"):
        attention_tuning(90, 512, 2, block_size=16)
