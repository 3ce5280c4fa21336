"""A cache in eight bits: what the reference stores and reads, and which backends have none."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from batchmill.kernels.ops.paged_attention import paged_attention
from batchmill.kernels.ops.rope_and_cache import rope_and_cache
from batchmill.kernels.ops.write_kv import write_kv
from batchmill.kernels.reference.fp8_rows import FP8

from .paged_attention_oracle import paged_attention_oracle

TABLES = torch.tensor([[2, 0], [1, 3]], dtype=torch.int32)
CU_SEQLENS_Q = torch.tensor([0, 1, 4], dtype=torch.int32)
SEQ_LENS = torch.tensor([6, 7], dtype=torch.int32)


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def empty_cache() -> Tensor:
    return torch.zeros(4, 4, 2, 8).to(FP8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_keys_and_values_are_stored_over_their_scales_to_the_nearest_eighth(
    dtype: torch.dtype,
) -> None:
    key, value = normal(3, 2, 8, dtype=dtype), normal(3, 2, 8, dtype=dtype) / 100
    k_cache, v_cache = empty_cache(), empty_cache()
    slots = torch.tensor([5, -1, 0])
    write_kv(key, value, k_cache, v_cache, slots, k_scale=0.5, v_scale=0.01)
    for rows, cache, scale in ((key, k_cache, 0.5), (value, v_cache, 0.01)):
        stored = cache.float().view(16, 2, 8)[[5, 0]] * scale
        wide = rows.float()[[0, 2]]
        # Half of the last of three bits, and below 2**-6 half of the smallest number.
        assert bool(((stored - wide).abs() <= wide.abs() / 16 + scale * 2**-10).all())
        assert not cache.float().view(16, -1)[[1, 2, 3, 4, 6, 15]].any()


def test_large_numbers_are_saturated_and_nan_stays_visible() -> None:
    key = torch.tensor([[[1000.0, -1e9, math.nan, math.inf, 448.0, 0.0, 1.0, -2.0]] * 2])
    k_cache = empty_cache()
    write_kv(key, key, k_cache, empty_cache(), torch.tensor([3]))
    stored = k_cache.float().view(16, 2, 8)[3, 0]
    assert stored[2].isnan()
    assert stored[[0, 1, 3, 4, 5, 6, 7]].tolist() == [448.0, -448.0, 448.0, 448.0, 0.0, 1.0, -2.0]


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_attention_reads_stored_numbers_times_their_scales(
    dtype: torch.dtype, window: int | None
) -> None:
    k_cache, v_cache = normal(4, 4, 2, 8).to(FP8), normal(4, 4, 2, 9)[..., :8].to(FP8)
    q = normal(4, 6, 8, dtype=dtype)
    batch = (TABLES, CU_SEQLENS_Q, SEQ_LENS, 0.3)
    got = paged_attention(q, k_cache, v_cache, *batch, window=window, k_scale=2.0, v_scale=0.25)
    keys, values = k_cache.double() * 2.0, v_cache.double() * 0.25
    want = paged_attention_oracle(q.double(), keys, values, *batch, window=window)
    assert got.dtype == dtype
    tolerance = 2e-6 if dtype == torch.float32 else 5e-3
    assert (got.double() - want).abs().max().item() <= tolerance


def test_backends_without_eight_bits_are_refused_by_name() -> None:
    rows, q = normal(3, 2, 8), normal(4, 6, 8)
    with pytest.raises(ValueError, match=r"write_kv \(float8 cache\) has no 'cpp' backend"):
        write_kv(rows, rows, empty_cache(), empty_cache(), torch.arange(3), backend="cpp")
    batch = (empty_cache(), empty_cache(), TABLES, CU_SEQLENS_Q, SEQ_LENS, 0.3)
    with pytest.raises(ValueError, match=r"\(float8 cache\) has no 'cpp' backend; it has 'ref"):
        paged_attention(q, *batch, backend="cpp")


def test_a_cache_of_another_type_is_refused() -> None:
    rows = normal(3, 2, 8, dtype=torch.bfloat16)
    half = torch.zeros(4, 4, 2, 8, dtype=torch.float16)
    for k_cache, v_cache in ((half, half), (half.bfloat16(), empty_cache())):
        with pytest.raises(ValueError, match=r"both be torch\.bfloat16 .* or both torch\.float8"):
            write_kv(rows, rows, k_cache, v_cache, torch.arange(3))


@pytest.mark.parametrize("with_norms", [True, False])
def test_the_fused_step_is_its_parts(with_norms: bool) -> None:
    qkv = normal(3, (6 + 2 * 2) * 8)
    cos, sin = normal(3, 3).cos(), normal(3, 3).sin()  # six of eight dimensions are rotated
    q_weight, k_weight = (normal(8), normal(9)[:8].clone()) if with_norms else (None, None)
    k_cache, v_cache = torch.zeros(4, 4, 2, 8), torch.zeros(4, 4, 2, 8)
    heads = qkv.clone().view(3, 10, 8)
    slots = torch.tensor([7, -1, 2])
    queries = rope_and_cache(
        *(qkv, k_cache, v_cache, slots, cos, sin),
        q_weight=q_weight,
        k_weight=k_weight,
        eps=1e-6,
        backend="reference",
    )
    if q_weight is not None and k_weight is not None:
        scale = torch.rsqrt(heads.square().mean(dim=-1, keepdim=True) + 1e-6)
        heads[:, :6] *= scale[:, :6] * q_weight
        heads[:, 6:8] *= scale[:, 6:8] * k_weight
    first, second = heads[:, :8, :3].clone(), heads[:, :8, 3:6].clone()
    heads[:, :8, :3] = first * cos[:, None] - second * sin[:, None]
    heads[:, :8, 3:6] = second * cos[:, None] + first * sin[:, None]
    torch.testing.assert_close(queries, heads[:, :6])
    torch.testing.assert_close(k_cache.view(16, 2, 8)[[7, 2]], heads[[0, 2], 6:8])
    torch.testing.assert_close(v_cache.view(16, 2, 8)[[7, 2]], heads[[0, 2], 8:])


def test_the_fused_step_names_arguments_that_do_not_match() -> None:
    cache, angles = torch.zeros(4, 4, 2, 8), torch.zeros(3, 4)
    rest = (cache, cache, torch.arange(3), angles, angles)
    with pytest.raises(ValueError, match=r"got \[3, 30\]"):
        rope_and_cache(torch.zeros(3, 30), *rest)
    with pytest.raises(ValueError, match="pass both or neither"):
        rope_and_cache(torch.zeros(3, 80), *rest, q_weight=torch.ones(8))
    with pytest.raises(ValueError, match="one row per token, got 2, 3"):
        rope_and_cache(torch.zeros(2, 80), *rest)
