"""Triton's products of a mixture of experts against the reference: on a GPU, or interpreted."""

from __future__ import annotations

import math
import os

import pytest
import torch
from torch import Tensor

from batchmill.kernels.ops.expert_linear import (
    FoldedActivation,
    multiply_experts,
    quantize_experts,
)
from batchmill.kernels.ops.experts import route_experts
from batchmill.kernels.reference.expert_linear import Fp8Experts, multiply_experts_reference
from batchmill.kernels.reference.fp8_rows import Fp8Rows, quantize_fp8_reference

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton and the kernels are first imported
pytest.importorskip("triton", reason="triton is not installed; `make setup` installs it on Linux")
from batchmill.kernels.every_size import launching_every_size  # noqa: E402
from batchmill.kernels.gpu import expert_linear  # noqa: E402
from batchmill.kernels.gpu.launch import interpreted  # noqa: E402

os.environ.pop("TRITON_INTERPRET", None)

#: Sums of about a hundred products in another order; or one rounding of the result.
TOLERANCE = {torch.float32: 2e-5, torch.float16: 4e-3}


@pytest.fixture(autouse=True)
def _interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    if DEVICE == "cpu":  # Triton looks again when it first launches a kernel
        monkeypatch.setenv("TRITON_INTERPRET", "1")


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    made = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))
    return made.to(DEVICE, dtype)


def ends_of(*counts: int) -> Tensor:
    return torch.tensor(counts).cumsum(0).to(DEVICE, torch.int32)


def test_kernels_run_here_on_a_gpu_or_in_the_interpreter() -> None:
    assert DEVICE == "cuda" or interpreted(expert_linear.expert_linear_kernel)


@pytest.mark.parametrize("activation", [None, "silu", "gelu_tanh"])
@pytest.mark.parametrize("has_bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_products_are_those_of_the_reference(
    activation: FoldedActivation | None, has_bias: bool, dtype: torch.dtype
) -> None:
    """Experts without a row, with one, and with more than a tile; odd numbers of columns."""
    ends = ends_of(0, 3, 0, 1, 41, 0)
    x, weight = normal(45, 100, dtype=dtype) / 8, normal(6, 150, 100, dtype=dtype)
    bias = normal(6, 150, dtype=dtype) if has_bias else None
    got = multiply_experts(x, weight, ends, bias=bias, activation=activation, backend="triton")
    want = multiply_experts_reference(
        x.double(), weight.double(), ends, torch.float64, None, bias, activation
    )
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), want, atol=TOLERANCE[dtype] * 4, rtol=TOLERANCE[dtype])


@pytest.mark.parametrize("num_tokens", [1, 5, 40])
def test_rows_are_gathered_as_the_routing_orders_them(num_tokens: int) -> None:
    routing = route_experts(normal(num_tokens, 9), 3, normalise=True, backend="reference")
    wide = normal(num_tokens, 200)
    x = wide[:, 8:136]  # rows lie apart
    weight = normal(9, 70, 128) / 8
    got, want = (
        multiply_experts(x, weight, routing.ends, rows=routing.rows, backend=backend)
        for backend in ("triton", "reference")
    )
    torch.testing.assert_close(got, want, atol=2e-5, rtol=2e-5)


def test_every_tile_has_the_same_products() -> None:
    ends = ends_of(5, 90, 2)
    x, weight = normal(97, 64, dtype=torch.float16) / 8, normal(3, 140, 64, dtype=torch.float16)
    want = multiply_experts(x, weight, ends, activation="silu", backend="reference")
    for tile in expert_linear._TILES.values():
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(expert_linear, "_tiles_for", lambda *sizes, tile=tile: [tile])
            got = multiply_experts(x, weight, ends, activation="silu", backend="triton")
        torch.testing.assert_close(got, want, atol=4e-3, rtol=4e-3)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter's products of infinity
def test_a_row_that_is_not_finite_affects_no_other() -> None:
    ends = ends_of(2, 3)
    x, weight = normal(5, 32), normal(2, 20, 32)
    want = multiply_experts(x, weight, ends, backend="triton")
    x[1], x[3] = math.nan, math.inf
    got = multiply_experts(x, weight, ends, backend="triton")
    assert not got[[1, 3]].isfinite().any()
    assert torch.equal(got[[0, 2, 4]], want[[0, 2, 4]])


def exact_rows(num_rows: int, size: int) -> Fp8Rows:
    """Return quantized rows of small whole numbers, which eight bits hold exactly."""
    values = (normal(num_rows, size) * 2).round().clamp(-7, 7)
    scales = 2.0 ** (torch.arange(num_rows, device=DEVICE) % 5 - 2)
    return Fp8Rows(values.to(torch.float8_e4m3fn), scales[:, None])


@pytest.mark.parametrize("counts", [(1, 0, 3), (20, 31, 2)], ids=str)
def test_products_in_eight_bits_are_exact_if_the_numbers_are(counts: tuple[int, ...]) -> None:
    x = exact_rows(sum(counts), 100)
    parts = [exact_rows(70, 100) for _ in counts]
    weight = Fp8Experts(
        torch.stack([part.values.view(torch.uint8) for part in parts]).view(torch.float8_e4m3fn),
        torch.stack([part.scales[:, 0] for part in parts]),
    )
    got = multiply_experts(x, weight, ends_of(*counts), out_dtype=torch.float32, backend="triton")
    start = 0
    for expert, count in enumerate(counts):
        rows = x.values[start : start + count].double() * x.scales[start : start + count]
        want = rows @ (parts[expert].values.double() * parts[expert].scales).T
        assert torch.equal(got[start : start + count].double(), want)
        start += count


def test_weights_are_quantized_by_their_columns_of_output() -> None:
    weight = normal(3, 32, 48)
    quantized = quantize_experts(weight)
    for expert in range(3):
        want = quantize_fp8_reference(weight[expert])
        assert torch.equal(quantized.values[expert].float(), want.values.float())
        assert torch.equal(quantized.scales[expert], want.scales[:, 0])


def test_warming_up_launches_each_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[int] = []
    monkeypatch.setattr(
        expert_linear, "_launch_product", lambda *args, **all_: launched.append(all_["BLOCK_ROWS"])
    )
    x, weight = normal(2, 32, dtype=torch.float16), normal(2, 16, 32, dtype=torch.float16)
    with launching_every_size():
        multiply_experts(x, weight, ends_of(1, 1), backend="triton")
    assert launched == [tile.rows for tile in expert_linear._TILES.values()]


def test_arguments_that_do_not_match_are_named() -> None:
    weight = normal(2, 16, 32)
    with pytest.raises(ValueError, match=r"got \[4, 31\], \[2, 16, 32\] and \[2\]"):
        multiply_experts(normal(4, 31), weight, ends_of(2, 2))
    with pytest.raises(ValueError, match="quantize both, or neither"):
        multiply_experts(exact_rows(4, 32), weight, ends_of(2, 2))
