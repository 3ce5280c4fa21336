"""Triton sampler against the reference: on a GPU, or interpreted without one."""

# Triton traces its kernels: no Python annotation would be true of their arguments.
# mypy: allow-untyped-defs, allow-incomplete-defs

from __future__ import annotations

import math
import os

import pytest
import torch
from torch import Tensor

from batchmill.kernels.ops.sample import have_finite_maximum, sample
from batchmill.kernels.reference.sample import gumbel_noise

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton and the kernels are first imported
pytest.importorskip("triton", reason="triton is not installed; `make setup` installs it on Linux")
import triton  # noqa: E402
import triton.language as tl  # noqa: E402

from batchmill.kernels.gpu import sample as triton_sample  # noqa: E402
from batchmill.kernels.gpu.sample import sample_and_check_triton, sample_triton  # noqa: E402
from batchmill.kernels.gpu.sample_floor import MAX_CANDIDATES, sample_floor_kernel  # noqa: E402


@triton.jit
def noise_kernel(out, seed, position, COUNT: tl.constexpr):
    ids = tl.arange(0, COUNT)
    state = triton_sample.row_state(tl.load(seed), tl.load(position))
    tl.store(out + ids, triton_sample.gumbel_noise(state, ids))
    tl.store(out + COUNT + ids, triton_sample.rough_noise(state, ids))


os.environ.pop("TRITON_INTERPRET", None)

VOCAB_SIZE = 9001  # three tiles, the last one ragged


@pytest.fixture(autouse=True)
def _interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    if DEVICE == "cpu":  # Triton looks again when it first launches a kernel
        monkeypatch.setenv("TRITON_INTERPRET", "1")


def batch(num_rows: int, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rows = {
        "logits": 3 * torch.randn(num_rows, VOCAB_SIZE, generator=generator),
        "temperature": 0.3 + torch.rand(num_rows, generator=generator),
        "top_k": torch.zeros(num_rows, dtype=torch.int64),
        "top_p": torch.ones(num_rows),
        "min_p_gaps": torch.full((num_rows,), -math.inf),
        "seeds": torch.randint(-(2**62), 2**62, (num_rows,), generator=generator),
        "positions": torch.randint(0, 2000, (num_rows,), generator=generator),
    }
    return {name: values.to(DEVICE) for name, values in rows.items()}


def floors_of(rows: dict[str, Tensor]) -> list[float]:
    """Return the smallest scaled logit that each row keeps."""
    num_rows = len(rows["logits"])
    floors = torch.empty(num_rows, dtype=torch.float32, device=DEVICE)
    candidates = torch.empty(num_rows, MAX_CANDIDATES, device=DEVICE)
    names = ("logits", "temperature", "top_k", "top_p", "min_p_gaps")
    controls = [rows[name] for name in names]
    sample_floor_kernel[(num_rows,)](
        floors, candidates, *controls, VOCAB_SIZE, VOCAB_SIZE, MOST=MAX_CANDIDATES, TILE=1024
    )
    return (floors.cpu() / rows["temperature"].cpu()).tolist()


def assert_same_tokens(rows: dict[str, Tensor]) -> None:
    assert torch.equal(sample_triton(**rows), sample(**rows, backend="reference"))


def test_noise_equals_the_references_up_to_the_last_places_and_rough_noise_nearly() -> None:
    count = 1 << 15
    out = torch.empty(2, count, device=DEVICE)
    seed = torch.tensor([-(2**61) - 12345], device=DEVICE)
    position = torch.tensor([77], device=DEVICE)
    noise_kernel[(1,)](out, seed, position, COUNT=count, enable_fp_fusion=False)
    want = gumbel_noise(seed, position, torch.arange(count, device=DEVICE))
    # The hash is exact, so every uniform is equal; two logarithms differ in their last places.
    assert (out[0] - want).abs().max().item() <= 2e-6
    # What a comparison of two rough scores may be wrong by is within the margin.
    worst = (out[1] - want).abs().max().item()
    assert 0.02 < worst <= triton_sample.ROUGH_ERROR <= triton_sample.MARGIN / 2


def test_plain_and_greedy_rows_match() -> None:
    rows = batch(8)
    rows["temperature"][::3] = 0
    assert_same_tokens(rows)


def test_top_k_top_p_and_both_match() -> None:
    rows = batch(9, seed=1)
    rows["top_k"][:6] = torch.tensor([1, 2, 20, 50, 1000, VOCAB_SIZE])
    rows["top_p"][3:] = torch.tensor([0.9, 0.5, 0.99, 0.1, 0.8, 1e-6])
    rows["temperature"][5] = 5.0
    assert_same_tokens(rows)


def test_min_p_alone_and_with_top_k_and_top_p_matches() -> None:
    rows = batch(10, seed=10)
    rows["min_p_gaps"][:9] = -torch.tensor([0.0, 1.0, 3.0, 5.0, 2.0, 3.0, 6.0, 4.0, 9.0])
    rows["top_k"][3:7] = torch.tensor([40, 3, 5000, 5000])
    rows["top_p"][5:] = torch.tensor([0.9, 0.6, 0.8, 0.99, 0.7])
    assert_same_tokens(rows)
    rows = {name: values[:4] for name, values in rows.items()}
    rows["temperature"][:] = 20.0  # most tokens are kept, more than are gathered
    rows["min_p_gaps"] *= 3
    assert_same_tokens(rows)
    rows["logits"][:] = rows["logits"].round()
    assert_same_tokens(rows)


def test_ties_at_the_floor_are_all_kept() -> None:
    rows = batch(4, seed=2)
    rows["logits"] = rows["logits"].round()  # hundreds of tokens share each value
    rows["top_k"][:] = torch.tensor([1, 5, 0, 40])
    rows["top_p"][2:] = 0.3
    assert_same_tokens(rows)


def test_rows_that_keep_more_tokens_than_are_gathered_match() -> None:
    """Many tokens tie with the last kept one, k is large, or no token stands out."""
    rows = batch(6, seed=7)
    rows["logits"][:3] = (rows["logits"][:3] > -1).float()  # some 5,600 ones
    rows["top_k"][:] = torch.tensor([10, 10, 0, 6000, 6000, 0])
    rows["top_p"][:] = torch.tensor([1.0, 0.5, 0.5, 1.0, 0.9, 0.999])
    rows["temperature"][3:] = 50.0
    assert_same_tokens(rows)


@pytest.mark.parametrize("temperature", [1e-30, 1e-3, 1e30])
def test_extreme_temperatures_match(temperature: float) -> None:
    rows = batch(3, seed=8)
    rows["temperature"][:] = temperature
    # At 1e30 all tokens are equally likely, and only a small p is reached at a token that does not
    # depend on the order of the additions.
    rows["top_k"][:2], rows["top_p"][1:] = 5, 0.8 if temperature < 1 else 16.4 / VOCAB_SIZE
    assert_same_tokens(rows)


def test_kept_tokens_are_those_that_a_sort_keeps() -> None:
    """The floor itself, over rows like a model's: few likely tokens and a long tail."""
    rows = batch(8, seed=9)
    rows["logits"] = (rows["logits"] * rows["logits"].abs()).to(torch.bfloat16).float()
    rows["top_k"][:] = torch.tensor([20, 1, 5000, 0, 0, 20, 300, 4096])
    rows["top_p"][:] = torch.tensor([1.0, 1.0, 1.0, 0.95, 0.6, 0.95, 0.99, 1.0])
    got = floors_of(rows)
    for row in range(8):
        k, p = int(rows["top_k"][row]), float(rows["top_p"][row])
        scaled = (rows["logits"][row] / rows["temperature"][row]).double()
        values = scaled.sort(descending=True).values
        if k:
            values = values[values >= values[k - 1]]
        if p < 1:
            reached = values.softmax(-1).cumsum(-1)
            values = values[: int((reached < p).sum()) + 1]
        assert got[row] == pytest.approx(float(values[-1]), abs=1e-6), f"row {row}"


def test_greedy_takes_the_lowest_of_equal_tokens() -> None:
    rows = batch(1)
    rows["temperature"][:] = 0
    rows["logits"][:] = 0
    rows["logits"][0, [4100, 4099, 9000]] = 5.0
    assert sample_triton(**rows).tolist() == [4099]


def test_forbidden_tokens_are_never_sampled() -> None:
    rows = batch(4, seed=3)
    allowed = [7, 5000, 9000]
    kept = rows["logits"][:, allowed]
    rows["logits"][:] = -math.inf
    rows["logits"][:, allowed] = kept
    rows["top_k"][1], rows["top_p"][2] = 2, 0.7
    assert_same_tokens(rows)
    assert set(sample_triton(**rows).tolist()) <= set(allowed)


def test_a_row_of_nan_gets_a_valid_token_and_does_not_affect_others() -> None:
    rows = batch(4, seed=4)
    rows["top_k"][1] = 10
    want = sample_triton(**rows)
    rows["logits"][1] = math.nan
    rows["logits"][2] = -math.inf
    got = sample_triton(**rows)
    assert torch.equal(got[[0, 3]], want[[0, 3]])
    assert bool(((got >= 0) & (got < VOCAB_SIZE)).all())


def test_a_token_depends_on_its_row_alone() -> None:
    rows = batch(6, seed=5)
    rows["top_k"][:] = torch.tensor([0, 3, 0, 0, 8, 0])
    whole = sample_triton(**rows)
    for row in range(6):
        alone = {name: values[row : row + 1] for name, values in rows.items()}
        assert sample_triton(**alone).tolist() == [int(whole[row])]


def test_logits_may_be_a_slice_of_wider_rows() -> None:
    rows = batch(3, seed=6)
    wide = torch.full((3, VOCAB_SIZE + 50), 99.0, device=DEVICE)
    wide[:, :VOCAB_SIZE] = rows["logits"]
    want = sample_triton(**rows)
    assert torch.equal(sample_triton(**rows | {"logits": wide[:, :VOCAB_SIZE]}), want)


@pytest.mark.parametrize("temperature", [0.0, 0.7], ids="temperature {}".format)
def test_rows_without_a_finite_maximum_are_found_while_sampling(temperature: float) -> None:
    rows = batch(7, seed=7)
    rows["temperature"][:] = temperature
    rows["top_k"][5:] = 20
    logits = rows["logits"]
    logits[1, 8999] = math.nan
    logits[2] = -math.inf
    logits[3, 4097] = math.inf
    logits[4, 1:] = -math.inf  # one token is allowed
    logits[5] = math.nan
    token_ids, is_finite = sample_and_check_triton(**rows)
    assert is_finite.tolist() == have_finite_maximum(logits).tolist()
    assert is_finite.tolist() == [True, False, False, False, True, False, True]
    whole = is_finite.nonzero()[:, 0]
    assert torch.equal(token_ids[whole], sample(**rows, backend="reference")[whole])
    assert bool(((token_ids >= 0) & (token_ids < VOCAB_SIZE)).all())


def test_tokens_whose_rough_scores_are_in_another_order_than_the_exact_ones_match() -> None:
    """All logits are equal, so that rough noise decides which chunks are scored exactly."""
    rows = batch(8, seed=11)
    rows["logits"][:] = 0.5
    rows["temperature"][:] = 1
    assert_same_tokens(rows)
