"""Triton's routing of a mixture of experts against the reference: on a GPU, or interpreted."""

from __future__ import annotations

import math
import os

import pytest
import torch
from torch import Tensor

from batchmill.kernels.ops.experts import combine_experts, route_experts

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton and the kernels are first imported
pytest.importorskip("triton", reason="triton is not installed; `make setup` installs it on Linux")
from batchmill.kernels.gpu import experts  # noqa: E402, F401

os.environ.pop("TRITON_INTERPRET", None)


@pytest.fixture(autouse=True)
def _interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    if DEVICE == "cpu":  # Triton looks again when it first launches a kernel
        monkeypatch.setenv("TRITON_INTERPRET", "1")


def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(DEVICE, dtype)


#: Tokens, experts and experts of a token. The last one has more choices than a program reads at
#: once, and the first experts that compute nothing.
SIZES = [(1, 6, 2), (5, 60, 4), (3, 8, 8), (0, 4, 2), (140, 9, 8)]


@pytest.mark.parametrize("normalise", [True, False], ids="normalised {}".format)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_tokens_are_routed_as_by_the_reference(size: tuple[int, int, int], normalise: bool) -> None:
    num_tokens, num_experts, num_chosen = size
    logits = normal(num_tokens, num_experts)
    got, want = (
        route_experts(logits, num_chosen, normalise=normalise, backend=each)
        for each in ("triton", "reference")
    )
    torch.testing.assert_close(got.shares, want.shares, atol=1e-6, rtol=1e-6)
    for name in ("rows", "places", "ends"):
        assert torch.equal(getattr(got, name), getattr(want, name)), name


def test_equal_experts_are_chosen_by_their_number() -> None:
    logits = torch.zeros(2, 5, device=DEVICE)
    logits[1, 3] = 1
    routing = route_experts(logits, 2, normalise=True, backend="triton")
    assert routing.rows.tolist() == [0, 1, 0, 1]  # experts 0, 0, 1 and 3
    assert routing.places.tolist() == [[0, 2], [3, 1]]
    assert routing.ends.tolist() == [2, 3, 3, 4, 4]


def test_a_token_that_is_not_finite_affects_no_other() -> None:
    logits = normal(3, 7)
    want = route_experts(logits, 2, normalise=False, backend="triton")
    logits[1] = math.nan
    got = route_experts(logits, 2, normalise=False, backend="triton")
    assert bool(got.shares[1].isnan().all())
    assert torch.equal(got.shares[[0, 2]], want.shares[[0, 2]])
    assert sorted(got.places.flatten().tolist()) == list(range(6)), "every row is one token's"
    assert sorted(got.rows.tolist()) == [0, 0, 1, 1, 2, 2]
    assert int(got.ends[-1]) == 6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_results_are_added_as_by_the_reference(dtype: torch.dtype) -> None:
    routing = route_experts(normal(6, 10), 3, normalise=True, backend="reference")
    computed = normal(18, 600, dtype=dtype)
    got, want = (
        combine_experts(computed, routing, backend=each) for each in ("triton", "reference")
    )
    assert got.dtype == dtype
    tolerance = 1e-6 if dtype == torch.float32 else 2e-3  # one rounding
    torch.testing.assert_close(got, want, atol=tolerance, rtol=tolerance)


def test_arguments_that_do_not_match_are_named() -> None:
    with pytest.raises(ValueError, match=r"at least 9 experts, got \[2, 8\]"):
        route_experts(torch.zeros(2, 8), 9, normalise=True)
    routing = route_experts(torch.zeros(2, 8), 2, normalise=True)
    with pytest.raises(ValueError, match=r"must have 4 rows.*got \[3, 5\]"):
        combine_experts(torch.zeros(3, 5), routing)
