"""C++ backends of all ops except attention, on each instruction set of this CPU."""

from __future__ import annotations

import pytest
import torch

from batchmill.kernels.cpu.bindings import (
    add_rms_norm_cpp,
    apply_rope_cpp,
    paged_attention_cpp,
    rms_norm_cpp,
    silu_and_mul_cpp,
    write_kv_cpp,
)
from batchmill.kernels.cpu.isa import ISAS, Isa, supported_isas
from batchmill.kernels.ops.gated_activation import silu_and_mul_reference
from batchmill.kernels.ops.rms_norm import add_rms_norm_reference, rms_norm_reference
from batchmill.kernels.ops.rope import apply_rope_reference
from batchmill.kernels.ops.write_kv import write_kv

from .attention_batch import AttentionBatch
from .checks import TOLERANCES, assert_near, dtypes, isas, library


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
def test_silu_equals_the_reference_and_is_finite_for_extreme_gates(
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
def test_rope_equals_the_reference_and_does_not_change_other_heads(
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


def test_half_precision_rounds_alike_on_every_instruction_set() -> None:
    every_half = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    for dtype in (torch.float16, torch.bfloat16):
        x = every_half.view(dtype)
        x = x[x.isfinite()].view(1, -1)
        one = torch.ones_like(x)
        # silu(big) = big: gate 60 leaves up * 60 to be rounded.
        gate_up = torch.cat([one * 60, x], dim=1)
        want = (x.float() * 60).to(dtype)
        # AVX512_BF16 rounds numbers below 2^-126 to zero, by definition.
        kept = want.float().abs() >= torch.finfo(torch.float32).tiny
        for isa in supported_isas():
            got = silu_and_mul_cpp(gate_up, library=library(isa))
            assert torch.equal(got[kept], want[kept]), (isa.name, dtype)
            assert (got[~kept].float().abs() <= torch.finfo(torch.float32).tiny).all()


def test_write_kv_refuses_a_slot_outside_the_cache() -> None:
    key, cache = torch.zeros(2, 1, 8), torch.zeros(3, 16, 1, 8)
    for slot in (48, -2):
        with pytest.raises(ValueError, match=rf"slot_mapping\[1\] is {slot}, the cache has 48"):
            write_kv_cpp(key, key, cache, cache, torch.tensor([0, slot]))


def test_wrong_dtypes_and_strides_are_refused_before_c_reads_them() -> None:
    batch = AttentionBatch([(1, 1), (1, 17)], (4, 2, 64), torch.float32)
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


def test_the_last_instruction_set_runs_on_every_cpu() -> None:
    assert not ISAS[-1].cpu_flags
    assert ISAS[-1] in supported_isas()
