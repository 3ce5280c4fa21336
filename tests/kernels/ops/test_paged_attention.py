"""Paged attention against a one-token-at-a-time float64 oracle."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from batchmill.kernels.ops.paged_attention import paged_attention
from batchmill.kernels.reference.paged_attention_plan import AttentionPlan

from .paged_attention_oracle import paged_attention_oracle

# fp32: sums of up to ~100 products of order 1 in another order. bf16 and fp16: the result is
# rounded to 8 or 11 bits, and so are the softmax weights before they meet the values.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}


@dataclass
class Case:
    q: Tensor
    k_cache: Tensor
    v_cache: Tensor
    block_tables: Tensor
    cu_seqlens_q: Tensor
    seq_lens: Tensor

    def arguments(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, float]:
        caches = (self.k_cache, self.v_cache)
        scale = float(self.q.shape[-1] ** -0.5)
        return (self.q, *caches, self.block_tables, self.cu_seqlens_q, self.seq_lens, scale)


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
    """Return random queries and keys in shuffled blocks, as a used pool would assign them."""
    generator = torch.Generator().manual_seed(len(query_lens) * 1000 + sum(seq_lens))
    needed = [-(-length // block_size) for length in seq_lens]
    num_blocks = sum(needed) + 3
    order = torch.randperm(num_blocks, generator=generator).tolist()
    tables = torch.zeros(len(seq_lens), max(needed), dtype=torch.int32)
    for row, count in enumerate(needed):
        tables[row, :count] = torch.tensor([order.pop() for _ in range(count)])

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    cache_shape = (num_blocks, block_size, num_kv_heads, head_dim)
    return Case(
        q=normal(sum(query_lens), num_kv_heads * group, head_dim),
        k_cache=normal(*cache_shape),
        v_cache=normal(*cache_shape),
        block_tables=tables,
        cu_seqlens_q=torch.tensor([0, *query_lens]).cumsum(0).to(torch.int32),
        seq_lens=torch.tensor(seq_lens, dtype=torch.int32),
    )


def assert_matches_oracle(
    case: Case, *, window: int | None = None, sinks: Tensor | None = None
) -> None:
    got = paged_attention(*case.arguments(), window=window, sinks=sinks, backend="reference")
    want = paged_attention_oracle(*case.arguments(), window=window, sinks=sinks)
    assert got.dtype == case.q.dtype
    assert got.is_contiguous()
    error = (got.double() - want).abs().max().item()
    assert error <= TOLERANCE[case.q.dtype], error


MIXED_QUERY_LENS = [1, 1, 1, 1, 5, 17, 33, 2]
MIXED_SEQ_LENS = [1, 16, 17, 70, 5, 40, 33, 19]


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("head_dim", [64, 80, 128])
@pytest.mark.parametrize("group", [1, 2, 3, 8])
def test_mixed_decode_and_prefill_match_the_oracle(
    dtype: torch.dtype, head_dim: int, group: int
) -> None:
    assert_matches_oracle(
        make_case(
            MIXED_QUERY_LENS,
            MIXED_SEQ_LENS,
            head_dim=head_dim,
            group=group,
            num_kv_heads=1 if group == 8 else 2,
            dtype=dtype,
        )
    )


@pytest.mark.parametrize("block_size", [1, 4, 7, 64])
def test_any_block_size_matches_the_oracle(block_size: int) -> None:
    assert_matches_oracle(make_case(MIXED_QUERY_LENS, MIXED_SEQ_LENS, block_size=block_size))


@pytest.mark.parametrize("window", [1, 5, 16, 33, 1000])
def test_a_window_hides_older_keys(window: int) -> None:
    assert_matches_oracle(make_case(MIXED_QUERY_LENS, MIXED_SEQ_LENS), window=window)


def test_very_ragged_decode_rows_match_the_oracle() -> None:
    lengths = [3, 400, 90, 1, 230, 8, 395, 64, 65, 63]
    assert_matches_oracle(make_case([1] * len(lengths), lengths, group=2, num_kv_heads=1))


def test_a_shared_plan_has_the_same_result() -> None:
    case = make_case(MIXED_QUERY_LENS, MIXED_SEQ_LENS)
    plan = AttentionPlan(case.block_tables, case.cu_seqlens_q, case.seq_lens, case.k_cache)
    planned = paged_attention(*case.arguments(), plan=plan, backend="reference")
    assert torch.equal(planned, paged_attention(*case.arguments(), backend="reference"))


def test_queries_may_be_a_view_of_a_fused_projection() -> None:
    case = make_case(MIXED_QUERY_LENS, MIXED_SEQ_LENS)
    fused = torch.cat((case.q, torch.full_like(case.q, 7.0)), dim=1)
    want = paged_attention(*case.arguments(), backend="reference")
    case.q = fused[:, : case.q.shape[1]]
    assert torch.equal(paged_attention(*case.arguments(), backend="reference"), want)


def test_a_neighbours_nan_reaches_no_other_sequence() -> None:
    case = make_case([1, 1, 4], [20, 30, 9])
    want = paged_attention(*case.arguments(), backend="reference")
    poisoned = case.block_tables[0, :2].long()
    case.k_cache[poisoned] = float("nan")
    case.v_cache[poisoned] = float("nan")
    got = paged_attention(*case.arguments(), backend="reference")
    assert got[0].isnan().all()
    assert torch.equal(got[1:], want[1:])


def test_block_zero_is_not_read_through_unused_table_entries() -> None:
    case = make_case([1, 1], [70, 90])  # near enough to be padded and computed together
    case.block_tables[case.block_tables == 0] = case.k_cache.shape[0] - 1
    want = paged_attention(*case.arguments(), backend="reference")
    case.block_tables[0, 5:] = 0
    case.k_cache[0] = float("nan")
    case.v_cache[0] = float("nan")
    assert torch.equal(paged_attention(*case.arguments(), backend="reference"), want)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k_cache": torch.zeros(4, 16, 2, 32)}, "the same"),
        ({"block_tables": torch.zeros(3, 2, dtype=torch.int64)}, "block_tables must be"),
        ({"seq_lens": torch.zeros(2, dtype=torch.int32)}, "for 2 seq_lens"),
        ({"q": torch.zeros(3, 6, 64, dtype=torch.float16)}, "both be torch.float16"),
        ({"q": torch.zeros(3, 5, 64)}, "5 heads of 64"),
    ],
)
def test_arguments_that_do_not_match_are_named(change: dict[str, Tensor], message: str) -> None:
    case = make_case([1, 1, 1], [5, 6, 7])
    for name, value in change.items():
        setattr(case, name, value)
    with pytest.raises(ValueError, match=message):
        paged_attention(*case.arguments())


def test_a_window_below_one_is_refused() -> None:
    case = make_case([1], [5])
    with pytest.raises(ValueError, match="window is 0"):
        paged_attention(*case.arguments(), window=0)


#: Sinks far below, among and far above the scores of keys; the last leaves the keys no weight.
SINKS = torch.tensor([-1e4, -1.0, 0.0, 1.5, 4.0, 1e4])


@pytest.mark.parametrize("window", [None, 9])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_sinks_take_a_share_of_the_weights(dtype: torch.dtype, window: int | None) -> None:
    case = make_case([1, 5, 1, 17, 1], [1, 5, 40, 33, 19], dtype=dtype)
    assert_matches_oracle(case, window=window, sinks=SINKS.to(dtype).float())


def test_sinks_of_another_number_of_heads_are_refused() -> None:
    case = make_case([1], [3])
    with pytest.raises(ValueError, match=r"sinks must be \[6\] torch.float32.* got \[2\]"):
        paged_attention(*case.arguments(), sinks=torch.zeros(2))
