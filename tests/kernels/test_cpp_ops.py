"""The C++ face of every op against the torch reference, on each instruction set this CPU has."""

from __future__ import annotations

import ctypes
from functools import lru_cache

import pytest
import torch
from torch import Tensor

from batchmill.kernels.cpp_build import build_library
from batchmill.kernels.cpp_faces import (
    add_rms_norm_cpp,
    apply_rope_cpp,
    paged_attention_cpp,
    rms_norm_cpp,
    silu_and_mul_cpp,
    write_kv_cpp,
)
from batchmill.kernels.cpp_isa import ISAS, Isa, supported_isas
from batchmill.kernels.cpp_library import load_library
from batchmill.kernels.paged_attention import paged_attention
from batchmill.kernels.rms_norm import add_rms_norm_reference, rms_norm_reference
from batchmill.kernels.rope import apply_rope_reference
from batchmill.kernels.silu_and_mul import silu_and_mul_reference
from batchmill.kernels.write_kv import write_kv

BLOCK_SIZE = 16
#: Results are rounded once, to 2^-9 or 2^-12 of values up to 4; bf16 also rounds the weights.
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 0.03, torch.float16: 0.004}

#: The instruction sets named for VNNI differ from the next one in int8 products only.
ISAS_OF_FLOATS = [isa for isa in supported_isas() if not isa.name.endswith("_vnni")]
isas = pytest.mark.parametrize("isa", ISAS_OF_FLOATS, ids=lambda isa: isa.name)
dtypes = pytest.mark.parametrize("dtype", TOLERANCES, ids=str)


@lru_cache
def library(isa: Isa) -> ctypes.CDLL:
    return load_library(build_library(isa))


def assert_near(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(
        got.float(), want.float(), atol=TOLERANCES[got.dtype], rtol=TOLERANCES[got.dtype] / 4
    )


class Batch:
    """Sequences in shuffled blocks of a cache that is NaN wherever nothing was written."""

    def __init__(
        self, lengths: list[tuple[int, int]], heads: tuple[int, int, int], dtype: torch.dtype
    ) -> None:
        num_heads, num_kv_heads, head_dim = heads
        counts = [-(-num_keys // BLOCK_SIZE) for _, num_keys in lengths]
        generator = torch.Generator().manual_seed(1)
        order = (torch.randperm(sum(counts), generator=generator) + 1).tolist()
        shape = (sum(counts) + 2, BLOCK_SIZE, num_kv_heads, head_dim)
        self.k_cache = torch.full(shape, torch.nan, dtype=dtype)
        self.v_cache = torch.full(shape, torch.nan, dtype=dtype)
        # Entries past a sequence's last block are garbage that must not be followed.
        self.block_tables = torch.full((len(lengths), max(counts) + 3), -9, dtype=torch.int32)
        for row, (_, num_keys) in enumerate(lengths):
            for block in range(counts[row]):
                self.block_tables[row, block] = number = order.pop()
                used = min(BLOCK_SIZE, num_keys - block * BLOCK_SIZE)
                for cache in (self.k_cache, self.v_cache):
                    values = torch.randn(used, num_kv_heads, head_dim, generator=generator)
                    cache[number, :used] = values.to(dtype)
        queries = [num_queries for num_queries, _ in lengths]
        starts = torch.tensor([0, *queries]).cumsum(0)
        self.cu_seqlens_q = starts.to(torch.int32)
        self.seq_lens = torch.tensor([num_keys for _, num_keys in lengths], dtype=torch.int32)
        rows = torch.randn(sum(queries), num_heads + 2, head_dim, generator=generator)
        self.q = rows.to(dtype)[:, :num_heads]  # rows lie apart, as in a fused projection
        self.scale = head_dim**-0.5

    def attend(self, library: ctypes.CDLL | None, window: int | None = None) -> Tensor:
        return paged_attention_cpp(
            self.q,
            self.k_cache,
            self.v_cache,
            self.block_tables,
            self.cu_seqlens_q,
            self.seq_lens,
            self.scale,
            window=window,
            library=library,
        )

    def truth(self, window: int | None = None) -> Tensor:
        return paged_attention(
            self.q.float(),
            self.k_cache.float().nan_to_num(),
            self.v_cache.float().nan_to_num(),
            self.block_tables.clamp_min(0),
            self.cu_seqlens_q,
            self.seq_lens,
            self.scale,
            window=window,
            backend="reference",
        )


DECODE = [(1, 1), (1, 16), (1, 17), (1, 301), (1, 64), (1, 65)]
MIXED = [(1, 40), (7, 7), (20, 64), (77, 130), (1, 1), (3, 200)]


@isas
@dtypes
@pytest.mark.parametrize("window", [None, 1, 70])
@pytest.mark.parametrize("heads", [(9, 3, 64), (8, 1, 80), (4, 4, 96), (14, 2, 128), (2, 1, 256)])
def test_attention_equals_the_reference(
    isa: Isa, dtype: torch.dtype, window: int | None, heads: tuple[int, int, int]
) -> None:
    for lengths in (DECODE, MIXED):
        batch = Batch(lengths, heads, dtype)
        assert_near(batch.attend(library(isa), window), batch.truth(window))


@isas
@pytest.mark.parametrize("head_dim", [37, 64, 128])
@pytest.mark.parametrize("group", range(1, 10))
def test_attention_serves_every_group_size(isa: Isa, group: int, head_dim: int) -> None:
    """Up to eight rows of 64 or 128 bf16 numbers are not packed; everything else is."""
    for dtype in (torch.float32, torch.bfloat16):
        for lengths in (DECODE, MIXED):
            batch = Batch(lengths, (2 * group, 2, head_dim), dtype)
            assert_near(batch.attend(library(isa)), batch.truth())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("num_threads", [1, 2, 5])
def test_a_context_split_among_threads_gives_the_same_attention(
    num_threads: int, dtype: torch.dtype
) -> None:
    batch = Batch([(1, 2000), (2, 700), (1, 3)], (6, 2, 64), dtype)
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        assert_near(batch.attend(None), batch.truth())
    finally:
        torch.set_num_threads(before)


#: For each sequence of a batch: the one whose first blocks it reads too, and how many of them.
SHARED = {
    "all, and some more": {1: (0, 9), 2: (0, 9), 3: (0, 20), 4: (0, 9)},
    "two groups": {1: (0, 16), 2: (0, 16), 4: (3, 10), 5: (3, 12)},
    "one shares little of much": {1: (0, 30), 2: (0, 30), 3: (0, 8), 4: (0, 8)},
    "too few to read together": {1: (0, 7), 3: (2, 1)},
    "up to the last token": {5: (4, 37)},
}


@isas
@dtypes
@pytest.mark.parametrize("heads", [(9, 3, 64), (8, 1, 80), (4, 4, 128)])
@pytest.mark.parametrize("shared", SHARED.values(), ids=SHARED)
def test_sequences_that_share_their_first_blocks_read_them_together(
    isa: Isa, dtype: torch.dtype, heads: tuple[int, int, int], shared: dict[int, tuple[int, int]]
) -> None:
    lengths = [(1, 500), (1, 489), (1, 512), (1, 481), (1, 600), (1, 593), (5, 70), (1, 3)]
    batch = Batch(lengths, heads, dtype)
    for row, (other, num_blocks) in shared.items():
        batch.block_tables[row, :num_blocks] = batch.block_tables[other, :num_blocks]
    for window in (None, 300):
        assert_near(batch.attend(library(isa), window), batch.truth(window))


@pytest.mark.parametrize("num_threads", [1, 2, 5])
def test_many_sequences_of_one_prefix_are_more_than_one_task(num_threads: int) -> None:
    batch = Batch([(1, 1000 + row) for row in range(70)], (6, 2, 64), torch.bfloat16)
    batch.block_tables[:, :62] = batch.block_tables[0, :62]
    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    try:
        assert_near(batch.attend(None), batch.truth())
    finally:
        torch.set_num_threads(before)


def test_nan_in_one_query_reaches_that_query_alone() -> None:
    batch = Batch(MIXED, (4, 2, 64), torch.bfloat16)
    batch.q[3, 1, 5] = torch.nan
    bad = batch.attend(None).isnan().any(-1)
    assert bad[3, 1]
    assert bad.sum() == 1


@isas
@dtypes
@pytest.mark.parametrize("shape", [(1, 64), (5, 37), (300, 576)])
def test_norms_equal_the_reference(isa: Isa, dtype: torch.dtype, shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    x, residual = torch.randn(shape).to(dtype), torch.randn(shape).to(dtype)
    weight = torch.randn(shape[1]).to(dtype)
    want = rms_norm_reference(x.float(), weight.float(), 1e-5)
    assert_near(rms_norm_cpp(x, weight, 1e-5, library=library(isa)), want)
    rounded = (x.float() + residual.float()).to(dtype)
    got = add_rms_norm_cpp(x, residual, weight, 1e-5, library=library(isa))
    assert torch.equal(residual, rounded)
    want = add_rms_norm_reference(torch.zeros(shape), rounded.float(), weight.float(), 1e-5)
    assert_near(got, want)


@isas
@dtypes
def test_norm_takes_heads_of_a_fused_projection(isa: Isa, dtype: torch.dtype) -> None:
    heads = torch.randn(6, 5, 40).to(dtype)[:, 1:3]
    weight = torch.randn(40).to(dtype)
    want = rms_norm_reference(heads.float(), weight.float(), 1e-6)
    assert_near(rms_norm_cpp(heads, weight, 1e-6, library=library(isa)), want)


@isas
@dtypes
def test_silu_equals_the_reference_and_is_finite_at_the_extremes(
    isa: Isa, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    gate_up = (3 * torch.randn(70, 2 * 53)).to(dtype)
    extremes = [-1e4, -200.0, -89.0, -88.0, -0.0, 88.0, 200.0, 1e4]
    gate_up[0, : len(extremes)] = torch.tensor(extremes)
    gate_up[0, 53 : 53 + len(extremes)] = 1
    got = silu_and_mul_cpp(gate_up, library=library(isa))
    want = silu_and_mul_reference(gate_up.float())
    assert got.isfinite().all()
    torch.testing.assert_close(got.float(), want, atol=2e-5, rtol=TOLERANCES[dtype])


@isas
@dtypes
@pytest.mark.parametrize("rotary_dim", [20, 64])
def test_rope_equals_the_reference_and_leaves_the_other_heads(
    isa: Isa, dtype: torch.dtype, rotary_dim: int
) -> None:
    torch.manual_seed(0)
    heads = torch.randn(50, 7, 64).to(dtype)
    angles = torch.randn(50, rotary_dim // 2) * 10
    want = heads.float()
    apply_rope_reference(want[:, :5], angles.cos(), angles.sin())
    apply_rope_cpp(heads[:, :5], angles.cos(), angles.sin(), library=library(isa))
    assert_near(heads, want)


@dtypes
def test_write_kv_fills_the_named_slots_and_no_others(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    projection = torch.randn(40, 8, 24).to(dtype)
    slots = torch.randperm(96)[:40]
    slots[7] = -1
    caches = [torch.zeros(6, 16, 3, 24, dtype=dtype) for _ in range(4)]
    write_kv_cpp(projection[:, 2:5], projection[:, 5:], caches[0], caches[1], slots)
    write_kv(
        projection[:, 2:5], projection[:, 5:], caches[2], caches[3], slots, backend="reference"
    )
    assert torch.equal(caches[0], caches[2])
    assert torch.equal(caches[1], caches[3])


def test_half_precision_conversions_round_alike_on_every_instruction_set() -> None:
    every_half = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    for dtype in (torch.float16, torch.bfloat16):
        x = every_half.view(dtype)
        x = x[x.isfinite()].view(1, -1)
        one = torch.ones_like(x)
        # silu(big) = big: gate 60 leaves up * 60 to be rounded.
        gate_up = torch.cat([one * 60, x], dim=1)
        want = (x.float() * 60).to(dtype)
        # AVX512_BF16 takes numbers below 2^-126 for zero when it rounds, by definition.
        kept = want.float().abs() >= torch.finfo(torch.float32).tiny
        for isa in supported_isas():
            got = silu_and_mul_cpp(gate_up, library=library(isa))
            assert torch.equal(got[kept], want[kept]), (isa.name, dtype)
            assert (got[~kept].float().abs() <= torch.finfo(torch.float32).tiny).all()


@pytest.mark.parametrize("field", ["block_tables", "seq_lens", "cu_seqlens_q"])
def test_attention_refuses_what_lies_outside_the_cache(field: str) -> None:
    batch = Batch(MIXED, (4, 2, 64), torch.float32)
    getattr(batch, field).view(-1)[1] = 10_000
    with pytest.raises(ValueError, match="outside the batch or the cache"):
        batch.attend(None)


def test_write_kv_refuses_a_slot_outside_the_cache() -> None:
    key, cache = torch.zeros(2, 1, 8), torch.zeros(3, 16, 1, 8)
    for slot in (48, -2):
        with pytest.raises(ValueError, match=rf"slot_mapping\[1\] is {slot}, the cache has 48"):
            write_kv_cpp(key, key, cache, cache, torch.tensor([0, slot]))


def test_wrong_dtypes_and_strides_are_errors_before_any_pointer_is_read() -> None:
    batch = Batch(DECODE, (4, 2, 64), torch.float32)
    with pytest.raises(ValueError, match="contiguous"):
        paged_attention_cpp(
            batch.q,
            batch.k_cache.transpose(0, 1),
            batch.v_cache,
            batch.block_tables,
            batch.cu_seqlens_q,
            batch.seq_lens,
            1.0,
        )
    with pytest.raises(ValueError, match=r"float64.*backend='reference'"):
        rms_norm_cpp(torch.zeros(2, 4).double(), torch.zeros(4).double(), 1e-5)
    with pytest.raises(ValueError, match="last 1 dimensions of gate_up must be contiguous"):
        silu_and_mul_cpp(torch.zeros(8, 4).t())


def test_the_last_instruction_set_asks_nothing_of_the_cpu() -> None:
    assert not ISAS[-1].cpu_flags
    assert ISAS[-1] in supported_isas()
