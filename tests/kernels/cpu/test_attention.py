"""Attention's C++ backend against the reference, on each instruction set this CPU has."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from batchmill.kernels.cpu.isa import Isa

from ...support.products import each_value_by_day, named
from .attention_batch import AttentionBatch
from .checks import assert_near, dtypes, isas, library


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Set the number of torch's threads inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


DECODE = [(1, 1), (1, 16), (1, 17), (1, 301), (1, 64), (1, 65)]
MIXED = [(1, 40), (7, 7), (20, 64), (77, 130), (1, 1), (3, 200)]


@isas
@dtypes
@pytest.mark.parametrize(
    ("heads", "window"),
    each_value_by_day(
        named((9, 3, 64), (8, 1, 80), (4, 4, 96), (14, 2, 128), (2, 1, 256)), named(None, 1, 70)
    ),
)
def test_attention_equals_the_reference(
    isa: Isa, dtype: torch.dtype, window: int | None, heads: tuple[int, int, int]
) -> None:
    for lengths in (DECODE, MIXED):
        batch = AttentionBatch(lengths, heads, dtype)
        assert_near(batch.attend(library(isa), window), batch.reference(window))


@isas
@pytest.mark.parametrize(
    ("group", "head_dim"), each_value_by_day(named(*range(1, 10)), named(37, 64, 128))
)
def test_attention_serves_every_group_size(isa: Isa, group: int, head_dim: int) -> None:
    """Up to eight rows of 64 or 128 bf16 numbers are not packed; all others are."""
    for dtype in (torch.float32, torch.bfloat16):
        for lengths in (DECODE, MIXED):
            batch = AttentionBatch(lengths, (2 * group, 2, head_dim), dtype)
            assert_near(batch.attend(library(isa)), batch.reference())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("num_threads", [1, 2, 5])
def test_a_context_split_among_threads_has_the_same_attention(
    num_threads: int, dtype: torch.dtype
) -> None:
    batch = AttentionBatch([(1, 2000), (2, 700), (1, 3)], (6, 2, 64), dtype)
    with threads(num_threads):
        assert_near(batch.attend(None), batch.reference())


@isas
@dtypes
@pytest.mark.parametrize("window", [None, 70])
def test_sinks_are_counted_once_however_keys_are_divided(
    isa: Isa, dtype: torch.dtype, window: int | None
) -> None:
    sinks = torch.tensor([-1e4, -1.0, 0.0, 1.5, 4.0, 1e4])
    for lengths in (DECODE, MIXED, [(1, 2000), (2, 700), (1, 3)]):
        batch = AttentionBatch(lengths, (6, 2, 64), dtype)
        with threads(2):
            got = batch.attend(library(isa), window, sinks)
        assert_near(got, batch.reference(window, sinks))
        assert got[:, 5].abs().max() == 0


#: Per sequence of a batch: the sequence whose first blocks it shares, and their number.
SHARED = {
    "all, and some more": {1: (0, 9), 2: (0, 9), 3: (0, 20), 4: (0, 9)},
    "two groups": {1: (0, 16), 2: (0, 16), 4: (3, 10), 5: (3, 12)},
    "one shares little of much": {1: (0, 30), 2: (0, 30), 3: (0, 8), 4: (0, 8)},
    "too few to read together": {1: (0, 7), 3: (2, 1)},
    "up to the last token": {5: (4, 37)},
}


@isas
@dtypes
@pytest.mark.parametrize(
    ("shared", "heads"),
    each_value_by_day(SHARED, named((9, 3, 64), (8, 1, 80), (4, 4, 128))),
)
def test_sequences_that_share_their_first_blocks_read_them_together(
    isa: Isa, dtype: torch.dtype, heads: tuple[int, int, int], shared: dict[int, tuple[int, int]]
) -> None:
    lengths = [(1, 500), (1, 489), (1, 512), (1, 481), (1, 600), (1, 593), (5, 70), (1, 3)]
    batch = AttentionBatch(lengths, heads, dtype)
    for row, (other, num_blocks) in shared.items():
        batch.share(row, other, num_blocks)
    for window in (None, 300):
        assert_near(batch.attend(library(isa), window), batch.reference(window))


@pytest.mark.parametrize("num_threads", [1, 2, 5])
def test_many_sequences_of_one_prefix_are_more_than_one_task(num_threads: int) -> None:
    batch = AttentionBatch([(1, 1000 + row) for row in range(70)], (6, 2, 64), torch.bfloat16)
    batch.block_tables[:, :62] = batch.block_tables[0, :62]
    with threads(num_threads):
        assert_near(batch.attend(None), batch.reference())


def test_nan_in_one_query_reaches_that_query_alone() -> None:
    batch = AttentionBatch(MIXED, (4, 2, 64), torch.bfloat16)
    batch.q[3, 1, 5] = torch.nan
    bad = batch.attend(None).isnan().any(-1)
    assert bad[3, 1]
    assert bad.sum() == 1


def random_batch(rng: random.Random, dtype: torch.dtype) -> AttentionBatch:
    """Return a batch of odd sizes: some sequences begin alike, some have no queries."""
    block_size = rng.choice([1, 3, 16, 16, 65, 200])
    group, head_dim = rng.choice([1, 2, 3, 7, 8, 9, 33, 71, 97]), rng.choice([3, 37, 64, 64, 128])
    num_kv_heads = rng.randint(1, 3)
    lengths = []
    for _ in range(rng.randint(1, 7)):
        num_queries = rng.choice([1, 1, 1, 1, 1, 0, 4, 40])
        lengths.append((num_queries, max(1, num_queries + rng.choice([0, 5, 150, 300, 900]))))
    if not any(num_queries for num_queries, _ in lengths):
        lengths.append((1, 1))
    heads = (group * num_kv_heads, num_kv_heads, head_dim)
    batch = AttentionBatch(lengths, heads, dtype, block_size=block_size, seed=rng.randrange(2**30))
    for row in range(1, len(lengths)):
        other = rng.choice([row - 1, row - 1, rng.randrange(row)])
        computed = [
            num_keys - num_queries for num_queries, num_keys in (lengths[row], lengths[other])
        ]
        num_blocks = min(computed) // block_size
        if rng.random() < 0.8:
            batch.share(
                row, other, num_blocks if rng.random() < 0.7 else rng.randint(0, num_blocks)
            )
    batch.scale *= rng.choice([1.0, 1.0, 1.0, -1.0, 5.0])
    return batch


@isas
@dtypes
def test_random_batches_equal_the_reference(isa: Isa, dtype: torch.dtype) -> None:
    for seed in range(40):
        rng = random.Random(seed)
        batch = random_batch(rng, dtype)
        window = rng.choice([None, None, None, 1, 100, 300])
        with threads(rng.choice([1, 2, 5])):
            got = batch.attend(library(isa), window)
        assert torch.equal(got, got), seed  # no NaN of slots that were never written
        assert_near(got, batch.reference(window))


def sharing_batch(num_own: int, num_heads: int, dtype: torch.dtype) -> AttentionBatch:
    """Return four sequences that share 512 keys and have `num_own` others, and a fifth."""
    lengths = [(1, 512 + num_own)] * 4 + [(1, 300)]
    batch = AttentionBatch(lengths, (num_heads, 2, 64), dtype)
    for row in range(1, 4):
        batch.share(row, 0, 32)
    return batch


def own_rows(batch: AttentionBatch, cache: Tensor, row: int, num_own: int) -> Iterator[Tensor]:
    """Yield a sequence's rows of the cache after the 512 keys that it shares."""
    for start in range(0, num_own, 16):
        yield cache[batch.block_tables[row, 32 + start // 16], : num_own - start]


@isas
@dtypes
@pytest.mark.parametrize(
    ("num_own", "what", "num_heads"),
    each_value_by_day(
        named(1, 2, 17, 70),
        named("query", "keys", "values"),
        named(2, 6),  # 4 rows of a kv head in the shared task, and 12
    ),
)
def test_numbers_that_are_not_finite_affect_their_sequence_only(
    isa: Isa, dtype: torch.dtype, num_heads: int, num_own: int, what: str
) -> None:
    """A part whose keys are NaN has no maximum, and it must count nevertheless."""
    for num_threads in (1, 2):
        batch = sharing_batch(num_own, num_heads, dtype)
        with threads(num_threads):
            clean = batch.attend(library(isa))
            if what == "query":
                batch.q[2] = torch.nan
            else:
                cache = batch.k_cache if what == "keys" else batch.v_cache
                for rows in own_rows(batch, cache, 2, num_own):
                    rows.fill_(torch.nan)
            got = batch.attend(library(isa))
        assert got[2].isnan().all()
        others = [0, 1, 3, 4]
        assert torch.equal(got[others], clean[others])


@isas
@dtypes
@pytest.mark.parametrize("factor", [1e4, 1e9, 1e12, -1e30])
def test_huge_scores_leave_the_largest_alone(isa: Isa, dtype: torch.dtype, factor: float) -> None:
    batch = sharing_batch(17, 6, dtype)
    batch.scale *= factor
    assert_near(batch.attend(library(isa)), batch.reference())


@isas
@dtypes
def test_attention_is_the_same_bits_each_time(isa: Isa, dtype: torch.dtype) -> None:
    batch = sharing_batch(70, 6, dtype)
    with threads(3):
        first = batch.attend(library(isa))
        assert all(torch.equal(batch.attend(library(isa)), first) for _ in range(20))


@pytest.mark.parametrize("field", ["block_tables", "seq_lens", "cu_seqlens_q"])
def test_attention_refuses_indices_outside_the_cache(field: str) -> None:
    batch = AttentionBatch(MIXED, (4, 2, 64), torch.float32)
    getattr(batch, field).view(-1)[1] = 10_000
    with pytest.raises(ValueError, match="outside the batch or the cache"):
        batch.attend(None)
