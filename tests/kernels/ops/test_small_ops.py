"""RMS norm, rotary embedding, SiLU-and-multiply and the KV write against written-out formulas."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from batchmill.kernels.ops.gated_activation import gelu_and_mul, silu_and_mul
from batchmill.kernels.ops.rms_norm import add_rms_norm, rms_norm
from batchmill.kernels.ops.rope import apply_rope
from batchmill.kernels.ops.write_kv import write_kv

# Relative to numbers of order 1 to 4: one rounding of the result, and of one intermediate.
TOLERANCE = {torch.float32: 3e-6, torch.bfloat16: 3e-2, torch.float16: 4e-3}
DTYPES = pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)


def assert_near(got: Tensor, want: Tensor) -> None:
    error = (got.double() - want.double()).abs().max().item() if want.numel() else 0.0
    assert error <= TOLERANCE[got.dtype], error


def normal(*shape: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(*shape, generator=generator).to(dtype)


@DTYPES
@pytest.mark.parametrize("shape", [(1, 576), (7, 41), (33, 128), (0, 64)])
def test_rms_norm_matches_its_formula(shape: tuple[int, int], dtype: torch.dtype) -> None:
    x, weight = normal(*shape, dtype=dtype), normal(shape[1], dtype=dtype)
    wide = x.double()
    want = wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double()
    got = rms_norm(x, weight, 1e-5, backend="reference")
    assert got.dtype == dtype
    assert_near(got, want)


@DTYPES
def test_rms_norm_takes_heads_inside_a_fused_projection(dtype: torch.dtype) -> None:
    fused, weight = normal(5, 9, 32, dtype=dtype), normal(32, dtype=dtype)
    got = rms_norm(fused[:, 2:6], weight, 1e-6, backend="reference")
    wide = fused[:, 2:6].double()
    assert_near(got, wide / (wide.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight.double())
    assert got.is_contiguous()


@DTYPES
def test_add_rms_norm_stores_the_sum_in_the_residual(dtype: torch.dtype) -> None:
    x, residual = normal(9, 48, dtype=dtype), normal(10, 48, dtype=dtype)[1:].clone()
    weight = normal(48, dtype=dtype)
    total = (x.double() + residual.double()).to(dtype)
    got = add_rms_norm(x, residual, weight, 1e-5, backend="reference")
    assert torch.equal(residual, total)
    wide = total.double()
    assert_near(got, wide / (wide.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight.double())


@DTYPES
@pytest.mark.parametrize("rotary_dim", [80, 32])
def test_rope_rotates_pairs_by_their_angles(rotary_dim: int, dtype: torch.dtype) -> None:
    num_tokens, num_heads, head_dim = 6, 3, 80
    half = rotary_dim // 2
    angles = torch.arange(num_tokens)[:, None] * torch.linspace(0.01, 1.5, half)[None]
    # A view, like the queries and keys of a fused projection.
    fused = normal(num_tokens, num_heads + 2, head_dim, dtype=dtype)
    before = fused.clone()
    apply_rope(fused[:, :num_heads], angles.cos(), angles.sin(), backend="reference")
    for token in range(num_tokens):
        for head in range(num_heads):
            for pair in range(half):
                a = float(before[token, head, pair])
                b = float(before[token, head, pair + half])
                angle = float(angles[token, pair])
                got = fused[token, head, pair], fused[token, head, pair + half]
                want = (
                    a * math.cos(angle) - b * math.sin(angle),
                    b * math.cos(angle) + a * math.sin(angle),
                )
                assert abs(float(got[0]) - want[0]) <= TOLERANCE[dtype]
                assert abs(float(got[1]) - want[1]) <= TOLERANCE[dtype]
    assert torch.equal(fused[:, num_heads:], before[:, num_heads:])
    assert torch.equal(fused[:, :, rotary_dim:], before[:, :, rotary_dim:])


@DTYPES
@pytest.mark.parametrize("shape", [(1, 3072), (5, 14), (0, 8)])
def test_silu_and_mul_matches_its_formula(shape: tuple[int, int], dtype: torch.dtype) -> None:
    gate_up = normal(*shape, dtype=dtype)
    gate, up = gate_up.double().chunk(2, dim=-1)
    assert_near(silu_and_mul(gate_up, backend="reference"), gate / (1 + (-gate).exp()) * up)


def test_silu_and_mul_is_finite_for_very_negative_gates() -> None:
    gate_up = torch.tensor([[-1e4, -200.0, 3.0, 2.0]])
    assert torch.equal(silu_and_mul(gate_up, backend="reference"), torch.zeros(1, 2))


@DTYPES
def test_write_kv_fills_the_named_slots_and_no_others(dtype: torch.dtype) -> None:
    k_cache = normal(5, 4, 2, 8, dtype=dtype)
    v_cache = normal(5, 4, 2, 9, dtype=dtype)[..., :8].contiguous()
    fused = normal(4, 7, 8, dtype=dtype)
    key, value = fused[:, 1:3], fused[:, 3:5]
    slots = [13, 2, -1, 19]
    want_k, want_v = k_cache.clone(), v_cache.clone()
    for token, slot in enumerate(slots):
        if slot >= 0:
            want_k[slot // 4, slot % 4] = key[token]
            want_v[slot // 4, slot % 4] = value[token]
    write_kv(key, value, k_cache, v_cache, torch.tensor(slots), backend="reference")
    assert torch.equal(k_cache, want_k)
    assert torch.equal(v_cache, want_v)


def test_arguments_that_do_not_match_are_refused() -> None:
    f32 = torch.float32
    with pytest.raises(ValueError, match=r"weight must be \[8\]"):
        rms_norm(torch.zeros(2, 8), torch.zeros(7), 1e-5)
    with pytest.raises(ValueError, match="residual must be"):
        add_rms_norm(torch.zeros(2, 8), torch.zeros(3, 8), torch.zeros(8), 1e-5)
    with pytest.raises(ValueError, match="rotary_dim 10 is more than head_dim 8"):
        apply_rope(torch.zeros(2, 1, 8), torch.zeros(2, 5), torch.zeros(2, 5))
    with pytest.raises(ValueError, match=r"must be torch\.float32"):
        apply_rope(torch.zeros(2, 1, 8), torch.zeros(2, 4).bfloat16(), torch.zeros(2, 4).bfloat16())
    with pytest.raises(ValueError, match=r"got \[2, 7\]"):
        silu_and_mul(torch.zeros(2, 7))
    cache = torch.zeros(2, 4, 2, 8, dtype=f32)
    with pytest.raises(ValueError, match="for 3 slots"):
        write_kv(torch.zeros(2, 2, 8), torch.zeros(2, 2, 8), cache, cache, torch.arange(3))
    with pytest.raises(ValueError, match=r"slot_mapping must be torch\.int64"):
        write_kv(torch.zeros(2, 2, 8), torch.zeros(2, 2, 8), cache, cache, torch.arange(2).int())


def test_an_unknown_backend_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"silu_and_mul has no 'numpy' backend; it has .*'refer"):
        silu_and_mul(torch.zeros(2, 8), backend="numpy")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_norms_by_a_float32_weight_round_only_once(dtype: torch.dtype) -> None:
    x, weight = normal(5, 64, dtype=dtype), 1 + normal(64, dtype=torch.float32) / 100
    wide = x.float()
    scale = torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + 1e-6)
    assert torch.equal(rms_norm(x, weight, 1e-6), (wide * scale * weight).to(dtype))
    residual = torch.zeros_like(x)
    assert torch.equal(add_rms_norm(x, residual, weight, 1e-6), rms_norm(x, weight, 1e-6))
    with pytest.raises(ValueError, match="or float32"):
        rms_norm(x, weight.double(), 1e-6)


def test_gelu_and_mul_matches_its_formula() -> None:
    gate, up = normal(7, 24, dtype=torch.float32), normal(7, 24, dtype=torch.float32)
    inner = math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)
    want = gate / 2 * (1 + torch.tanh(inner)) * up
    torch.testing.assert_close(gelu_and_mul(torch.cat([gate, up], dim=-1)), want)
    with pytest.raises(ValueError, match=r"\[num_tokens, 2 \* size\]"):
        gelu_and_mul(torch.zeros(2, 3))
