"""The Triton backend of `add_lora` against the reference: on a GPU, or interpreted."""

from __future__ import annotations

import os

import pytest
import torch

from batchmill.kernels.reference.lora import LoraPair, LoraRows, add_lora_reference

from ...support.products import each_value_by_day
from ..lora_groups import SHAPES, Shape, make_groups, make_tiles, wide

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton and the kernels are first imported
pytest.importorskip("triton", reason="triton is not installed; `make setup` installs it on Linux")
from batchmill.kernels.gpu.lora import add_lora_tiles_triton, add_lora_triton  # noqa: E402

os.environ.pop("TRITON_INTERPRET", None)

#: Of results of order 1: rounding of the first product and of the result.
TOLERANCES = {torch.float32: 2e-5, torch.float16: 8e-3, torch.bfloat16: 6e-2}

CASES = pytest.mark.parametrize(
    ("shape", "dtype"), each_value_by_day(SHAPES, {str(dtype): dtype for dtype in TOLERANCES})
)


@pytest.fixture(autouse=True)
def _interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    if DEVICE == "cpu":  # Triton looks again when it first launches a kernel
        monkeypatch.setenv("TRITON_INTERPRET", "1")


def moved(groups: list[LoraRows]) -> list[LoraRows]:
    return [
        LoraRows(rows.to(DEVICE), LoraPair(*(each.to(DEVICE) for each in pair)))
        for rows, pair in groups
    ]


@CASES
def test_contributions_equal_the_reference(shape: Shape, dtype: torch.dtype) -> None:
    out, x, groups = make_groups(shape, dtype)
    before, want = out.clone(), out.float()
    add_lora_reference(want, x.float(), wide(groups), shape[0])
    got, x = out.to(DEVICE), x.to(DEVICE)
    add_lora_triton(got, x, moved(groups), shape[0])
    tolerance = TOLERANCES[dtype]
    torch.testing.assert_close(got.cpu().float(), want, atol=tolerance, rtol=tolerance)
    others = torch.ones(len(x), dtype=torch.bool)
    others[torch.cat([rows for rows, _ in groups])] = False
    assert torch.equal(got.cpu()[others], before[others])


@CASES
def test_tiles_give_what_groups_give(shape: Shape, dtype: torch.dtype) -> None:
    out, x, groups = make_groups(shape, dtype)
    before, want = out.clone(), out.float()
    add_lora_reference(want, x.float(), wide(groups), shape[0])
    got, groups = out.to(DEVICE), moved(groups)
    # More tiles, rows and ranks than there are, as in a graph that is replayed for fewer.
    tiles = make_tiles(groups, num_spare=3, max_rank=64)
    add_lora_tiles_triton(got, x.to(DEVICE), tiles, shape[0])
    tolerance = TOLERANCES[dtype]
    torch.testing.assert_close(got.cpu().float(), want, atol=tolerance, rtol=tolerance)
    others = torch.ones(len(x), dtype=torch.bool)
    others[torch.cat([rows.cpu() for rows, _ in groups])] = False
    assert torch.equal(got.cpu()[others], before[others])
    unchanged = before.clone().to(DEVICE)
    tiles.pairs[:, 2] = 0  # adapters that leave this matrix alone
    add_lora_tiles_triton(unchanged, x.to(DEVICE), tiles, shape[0])
    assert torch.equal(unchanged.cpu(), before)


def test_no_groups_change_nothing() -> None:
    out, x, groups = make_groups(((8,), 8, [(8, 0)]), torch.float32)
    got = out.to(DEVICE)
    for none in ([], moved(groups)):
        add_lora_triton(got, x.to(DEVICE), none, (8,))
    assert torch.equal(got.cpu(), out)
