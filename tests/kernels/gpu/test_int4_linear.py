"""4-bit weights times 16-bit activations: on a GPU, or interpreted in float16."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from batchmill.kernels.ops.grouped_weight import GroupedWeight
from batchmill.kernels.ops.int4_gpu_linear import Int4GpuLinear

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton and the kernels are first imported
pytest.importorskip("triton", reason="triton is not installed; `make setup` installs it on Linux")
from batchmill.kernels.gpu import int4_linear  # noqa: E402

os.environ.pop("TRITON_INTERPRET", None)


@pytest.fixture(autouse=True)
def _interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    if DEVICE == "cpu":  # Triton looks again when it first launches a kernel
        monkeypatch.setenv("TRITON_INTERPRET", "1")


def generator(*values: int) -> torch.Generator:
    return torch.Generator().manual_seed(sum(values))


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=generator(*shape)).half()


def weight(
    size: tuple[int, int],
    group: int,
    *,
    has_zeros: bool,
    scales_in: torch.dtype = torch.float16,
    dtype: torch.dtype = torch.float16,
) -> GroupedWeight:
    num_rows, num_inputs = size
    seed = generator(*size, group)
    groups = (num_rows, num_inputs // group)
    scales = 0.01 + torch.rand(groups, generator=seed) / 50
    zeros = torch.randint(0, 17, groups, generator=seed).float()
    return GroupedWeight(
        q=torch.randint(0, 16, size, generator=seed).to(torch.uint8),
        scales=scales.to(scales_in).float(),
        zeros=zeros if has_zeros else None,
        group_size=group,
        dtype=dtype,
    )


def product(
    x: Tensor, of: GroupedWeight, bias: Tensor | None = None, backend: str = "triton"
) -> Tensor:
    linear = Int4GpuLinear(
        of,
        None if bias is None else bias.to(DEVICE),
        device=torch.device(DEVICE),
        backend="reference" if backend == "reference" else "triton",
    )
    return linear(x.to(DEVICE)).cpu()


def check(x: Tensor, of: GroupedWeight, bias: Tensor | None = None) -> None:
    dense = of.dense().half().double()
    want = x.double() @ dense.T + (0 if bias is None else bias.double())
    got = product(x, of, bias)
    assert got.dtype == torch.float16
    error = (got.double() - want).abs().max() / want.abs().max()
    assert error < 1e-3  # one rounding to 11 bits, and sums in float32


#: Rows, columns, inputs and inputs of a group: groups smaller and larger than what is packed
#: together, groups that end in the middle of it, inputs that do not fill it, columns and rows that
#: do not fill a tile, and each tile.
SIZES = [
    (1, 64, 64, 32),
    (3, 70, 96, 32),
    (16, 130, 256, 128),
    (17, 64, 192, 64),
    (40, 33, 160, 32),
    (5, 40, 288, 96),
    (2, 33, 320, 160),
    (70, 129, 384, 128),
    (130, 64, 128, 64),
]


@pytest.mark.parametrize("has_zeros", [False, True], ids=["symmetric", "with zero points"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_products_are_those_of_the_unpacked_weight(
    size: tuple[int, int, int, int], has_zeros: bool
) -> None:
    num_rows, num_columns, num_inputs, group = size
    check(
        normal(num_rows, num_inputs),
        weight((num_columns, num_inputs), group, has_zeros=has_zeros),
        normal(num_columns) if has_zeros else None,
    )


@pytest.mark.parametrize("scales_in", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("has_zeros", [False, True], ids=["symmetric", "with zero points"])
def test_each_number_is_rounded_as_if_it_had_been_unpacked(
    scales_in: torch.dtype, has_zeros: bool
) -> None:
    of = weight((66, 96), 32, has_zeros=has_zeros, scales_in=scales_in)
    assert torch.equal(product(torch.eye(96).half(), of).T, of.dense().half())
    assert torch.equal(product(torch.eye(96).half(), of, backend="reference").T, of.dense().half())


def test_several_programs_divide_the_inputs_of_few_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int4_linear, "num_multiprocessors", lambda _: 4)
    parts: list[int] = []
    launch = int4_linear._launch_sum

    def count(grid: tuple[int, int], tensors: tuple[Tensor, ...], *args: object, **kw: int) -> None:
        parts.append(len(tensors[1]))
        launch(grid, tensors, *args, **kw)  # type: ignore[arg-type]

    monkeypatch.setattr(int4_linear, "_launch_sum", count)
    of = weight((70, 1184), 32, has_zeros=True)  # 18.5 chunks for 2 tiles and 8 programs
    check(normal(5, 1184), of, normal(70))
    check(normal(5, 1184), of)
    assert parts == [3, 3]


def test_a_row_that_is_not_finite_affects_no_other() -> None:
    x, of = normal(5, 128), weight((40, 128), 64, has_zeros=True)
    want = product(x, of)
    x[2, 7] = math.nan
    got = product(x, of)
    assert bool(got[2].isnan().all())
    others = [0, 1, 3, 4]
    assert torch.equal(got[others], want[others])


def test_rows_may_lie_apart_and_there_may_be_none() -> None:
    wide, of = normal(6, 256), weight((40, 128), 32, has_zeros=False)
    assert torch.equal(product(wide[:, 64:192], of), product(wide[:, 64:192].contiguous(), of))
    assert product(wide[:0, :128], of).shape == (0, 40)


def test_a_packed_weight_takes_its_bits() -> None:
    packed = Int4GpuLinear(weight((64, 4096), 128, has_zeros=False), None)
    assert packed.num_bytes == 64 * 4096 * (4 + 16 / 128) / 8


def test_what_is_not_multiplied_is_named() -> None:
    with pytest.raises(ValueError, match=r"bfloat16 or float16 activations, got torch\.float32"):
        Int4GpuLinear(weight((8, 64), 32, has_zeros=False, dtype=torch.float32), None)
    odd = weight((8, 64), 32, has_zeros=True)
    assert odd.zeros is not None
    odd.zeros[3, 1] = 2.5
    with pytest.raises(ValueError, match=r"zero point is 2\.5.*whole numbers from 0 to 16"):
        Int4GpuLinear(odd, None)
    rows = Int4GpuLinear(weight((8, 64), 32, has_zeros=False), None)
    with pytest.raises(ValueError, match=r"\[num_rows, 64\].*got \[2, 32\]"):
        rows(normal(2, 32))


def test_warming_up_launches_every_kernel_that_any_number_of_rows_launches() -> None:
    script = Path(__file__).with_name("int4_warm_up.py")
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, env=environment, timeout=200
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["missing"] == []
    assert found["num_kinds"] >= 6
