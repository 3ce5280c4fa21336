"""Triton norm, rotary, SiLU and cache write against the references: on a GPU, or interpreted."""

from __future__ import annotations

import math
import os

import pytest
import torch
from torch import Tensor

from batchmill.kernels.ops.gated_activation import gelu_and_mul, silu_and_mul
from batchmill.kernels.ops.rms_norm import add_rms_norm, rms_norm
from batchmill.kernels.ops.rope import apply_rope
from batchmill.kernels.ops.write_kv import write_kv

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton and the kernels are first imported
pytest.importorskip("triton", reason="triton is not installed; `make setup` installs it on Linux")
from batchmill.kernels.gpu.gated_activation import silu_and_mul_triton  # noqa: E402
from batchmill.kernels.gpu.rms_norm import add_rms_norm_triton, rms_norm_triton  # noqa: E402
from batchmill.kernels.gpu.rope import apply_rope_triton, rope_and_cache_triton  # noqa: E402
from batchmill.kernels.gpu.write_kv import write_kv_triton  # noqa: E402

os.environ.pop("TRITON_INTERPRET", None)

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
#: Two rounding steps, relative (the interpreter truncates to bfloat16, a GPU rounds) ...
RELATIVE = {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 2.5e-2}
#: ... and as much of a term of order 1 that another of its size has cancelled.
ABSOLUTE = {torch.float32: 4e-6, torch.float16: 4e-3, torch.bfloat16: 6e-2}


@pytest.fixture(autouse=True)
def _interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    if DEVICE == "cpu":  # Triton looks again when it first launches a kernel
        monkeypatch.setenv("TRITON_INTERPRET", "1")


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randn(shape, generator=generator).to(DEVICE, dtype)


def assert_close(got: Tensor, want: Tensor) -> None:
    assert got.dtype == want.dtype
    assert got.shape == want.shape
    error = (got.double() - want.double()).abs()
    allowed = RELATIVE[got.dtype] * want.double().abs() + ABSOLUTE[got.dtype]
    assert bool((error <= allowed).all()), error.max().item()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(7, 96), (1, 576), (3, 5, 64), (2, 4100), (2, 3, 2, 80)])
def test_rms_norm_matches(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, weight = normal(*shape, dtype=dtype), normal(shape[-1], dtype=dtype)
    got = rms_norm_triton(x, weight, 1e-5)
    assert_close(got, rms_norm(x, weight, 1e-5, backend="reference"))
    assert got.is_contiguous()


def test_rms_norm_of_heads_inside_a_projection_matches() -> None:
    heads = normal(5, 9 * 64).view(5, 9, 64)[:, 2:6]
    weight = normal(64)
    want = rms_norm(heads, weight, 1e-6, backend="reference")
    assert_close(rms_norm_triton(heads, weight, 1e-6), want)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_add_rms_norm_updates_the_residual_and_normalises_the_rounded_sum(
    dtype: torch.dtype,
) -> None:
    x, weight = normal(6, 576, dtype=dtype), normal(576, dtype=dtype)
    got_residual = normal(6, 577)[:, :576].to(dtype).contiguous()
    want_residual = got_residual.clone()
    got = add_rms_norm_triton(x, got_residual, weight, 1e-5)
    want = add_rms_norm(x, want_residual, weight, 1e-5, backend="reference")
    assert_close(got_residual, want_residual)
    if dtype != torch.bfloat16:  # truncated in the interpreter
        assert torch.equal(got_residual, want_residual)
    assert_close(got, want)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("size", "tokens"), [(1, 3), (96, 5), (1500, 2)])
def test_silu_and_mul_matches_for_extreme_gates_too(
    size: int, tokens: int, dtype: torch.dtype
) -> None:
    gate_up = normal(tokens, 2 * size, dtype=dtype)
    gate_up[0, 0], gate_up[-1, 0] = 200.0, -200.0  # exp(200) is infinite in float32
    gate_up[0, size] = 0.01
    assert_close(silu_and_mul_triton(gate_up), silu_and_mul(gate_up, backend="reference"))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gelu_and_mul_matches_for_extreme_gates_too(dtype: torch.dtype) -> None:
    gate_up = normal(3, 2 * 1100, dtype=dtype)
    gate_up[0, 0], gate_up[-1, 0] = 30.0, -30.0
    got = gelu_and_mul(gate_up, backend="triton")
    assert_close(got, gelu_and_mul(gate_up, backend="reference"))


def test_norms_by_a_float32_weight_match() -> None:
    x, weight = normal(5, 96, dtype=torch.float16), normal(96)
    want = rms_norm(x, weight, 1e-6, backend="reference")
    assert_close(rms_norm(x, weight, 1e-6, backend="triton"), want)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("head_dim", "rotary_dim"), [(64, 64), (80, 32), (96, 96)])
def test_apply_rope_matches_and_does_not_change_other_numbers(
    head_dim: int, rotary_dim: int, dtype: torch.dtype
) -> None:
    fused = normal(5, 11, head_dim, dtype=dtype)
    cos, sin = normal(5, rotary_dim // 2), normal(5, rotary_dim // 2 + 1)[:, :-1].contiguous()
    want = fused.clone()
    apply_rope(want[:, :9], cos, sin, backend="reference")
    apply_rope_triton(fused[:, :9], cos, sin)
    assert_close(fused, want)
    assert torch.equal(fused[:, 9:], want[:, 9:])
    assert torch.equal(fused[..., rotary_dim:], want[..., rotary_dim:])


SLOTS = [3, -1, 60, 17, 0]


def caches(head_dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    empty = torch.full((4, 16, 2, head_dim), math.nan, device=DEVICE).to(dtype)
    return empty, empty.clone()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_dim", [64, 80])
def test_write_kv_fills_its_slots_and_no_others(head_dim: int, dtype: torch.dtype) -> None:
    fused = normal(5, 6, head_dim, dtype=dtype)
    key, value = fused[:, 1:3], fused[:, 4:6]
    slots = torch.tensor(SLOTS, device=DEVICE)
    got, want = caches(head_dim, dtype), caches(head_dim, dtype)
    write_kv_triton(key, value, *got, slots)
    write_kv(key, value, *want, slots, backend="reference")
    for one, other in zip(got, want, strict=True):
        assert torch.equal(one.nan_to_num(nan=7.5), other.nan_to_num(nan=7.5))


def test_an_eight_bit_cache_holds_scaled_and_saturated_numbers() -> None:
    # Normal numbers that need no rounding: the interpreter's loses carries (1.99 becomes 1, not 2).
    key = (1 + normal(5, 2, 64).abs()).to(torch.float8_e4m3fn).to(torch.float16)
    key[:, 1] *= -1
    key[0, 0, :2] = torch.tensor([1000.0, -1000.0])
    if DEVICE == "cuda":  # the interpreter turns NaN into a number
        key[0, 0, 2] = math.nan
    slots = torch.tensor(SLOTS, device=DEVICE)
    k_cache, v_cache = caches(64, torch.float8_e4m3fn)
    write_kv_triton(key, key, k_cache, v_cache, slots, k_scale=2.0, v_scale=0.5)
    for cache, scale in ((k_cache, 2.0), (v_cache, 0.5)):
        rows = cache.view(64, 2, 64).float()
        want = (key.float() / scale).clamp(-448, 448).to(torch.float8_e4m3fn).float()
        for token, slot in enumerate(SLOTS):
            if slot >= 0:
                assert torch.equal(rows[slot].nan_to_num(nan=7.5), want[token].nan_to_num(nan=7.5))
        assert rows.view(64, -1).isnan().all(dim=1).sum() == 60


@pytest.mark.parametrize(
    ("head_dim", "rotary_dim", "norms", "dtype"),
    [
        (64, 64, False, torch.float32),
        (80, 32, True, torch.float32),
        (128, 128, True, torch.float16),
        (96, 96, True, torch.bfloat16),
    ],
    ids=str,
)
def test_the_fused_step_equals_the_separate_ops(
    head_dim: int, rotary_dim: int, norms: bool, dtype: torch.dtype
) -> None:
    num_heads, num_kv_heads = 7, 2
    qkv = normal(5, (num_heads + 2 * num_kv_heads) * head_dim, dtype=dtype)
    cos, sin = normal(5, rotary_dim // 2), normal(5, rotary_dim // 2 + 1)[:, :-1].contiguous()
    q_weight = normal(head_dim, dtype=dtype) if norms else None
    k_weight = normal(head_dim + 1, dtype=dtype)[1:] if norms else None
    slots = torch.tensor(SLOTS, device=DEVICE)
    got_caches, want_caches = caches(head_dim, dtype), caches(head_dim, dtype)
    before = qkv.clone()
    got = rope_and_cache_triton(
        qkv, *got_caches, slots, cos, sin, q_weight=q_weight, k_weight=k_weight, eps=1e-6
    )
    assert torch.equal(qkv, before)

    heads = qkv.view(5, -1, head_dim)
    query, key = heads[:, :num_heads].clone(), heads[:, num_heads:-num_kv_heads].clone()
    if q_weight is not None and k_weight is not None:
        query = rms_norm(query, q_weight, 1e-6, backend="reference")
        key = rms_norm(key, k_weight, 1e-6, backend="reference")
    apply_rope(query, cos, sin, backend="reference")
    apply_rope(key, cos, sin, backend="reference")
    write_kv(key, heads[:, -num_kv_heads:], *want_caches, slots, backend="reference")
    assert_close(got, query)
    for one, other in zip(got_caches, want_caches, strict=True):
        assert torch.equal(one.isnan(), other.isnan())
        assert_close(one.nan_to_num(), other.nan_to_num())


def test_one_norm_weight_without_the_other_is_refused() -> None:
    with pytest.raises(ValueError, match="belong together"):
        rope_and_cache_triton(
            normal(1, 4 * 64),
            *caches(64, torch.float32),
            torch.zeros(1, dtype=torch.int64, device=DEVICE),
            normal(1, 32),
            normal(1, 32),
            q_weight=normal(64),
        )


def test_empty_batches_launch_nothing() -> None:
    assert rms_norm_triton(normal(0, 64), normal(64), 1e-6).shape == (0, 64)
    assert silu_and_mul_triton(normal(0, 64)).shape == (0, 32)
    apply_rope_triton(normal(0, 2, 64), normal(0, 32), normal(0, 32))
    empty_slots = torch.zeros(0, dtype=torch.int64, device=DEVICE)
    write_kv_triton(normal(0, 2, 64), normal(0, 2, 64), *caches(64, torch.float32), empty_slots)
