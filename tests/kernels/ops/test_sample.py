"""The sampler: its distribution, the tokens it keeps, and the independence of rows."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from transformers import MinPLogitsWarper

from batchmill.kernels.cpu.bindings import sample_cpp
from batchmill.kernels.cpu.build import build_library
from batchmill.kernels.cpu.isa import supported_isas
from batchmill.kernels.cpu.library import load_library
from batchmill.kernels.ops.dispatch import Backend
from batchmill.kernels.ops.sample import min_p_gap, sample, sample_and_check
from batchmill.kernels.reference.sample import gumbel_noise, murmur3

#: Instruction sets with VNNI differ from the next ones in int8 products only.
ISAS_OF_FLOATS = [isa for isa in supported_isas() if not isa.name.endswith("_vnni")]
BACKENDS = pytest.mark.parametrize("backend", ["reference", "numpy", "cpp"])


def sample_rows(
    logits: Tensor,
    *,
    temperature: float | Sequence[float] = 1.0,
    top_k: int | Sequence[int] = 0,
    top_p: float | Sequence[float] = 1.0,
    min_p_gap: float | Sequence[float] = -math.inf,
    seeds: Tensor | None = None,
    positions: Tensor | None = None,
    backend: Backend = "numpy",
) -> Tensor:
    """Sample with numbers that hold for all rows, or one per row."""
    num_rows = len(logits)

    def spread(value: float | Sequence[float], dtype: torch.dtype) -> Tensor:
        values = value if isinstance(value, Sequence) else [value] * num_rows
        return torch.tensor(values, dtype=dtype)

    return sample(
        logits,
        spread(temperature, torch.float32),
        spread(top_k, torch.int64),
        spread(top_p, torch.float32),
        spread(min_p_gap, torch.float32),
        torch.arange(num_rows) if seeds is None else seeds,
        torch.zeros(num_rows, dtype=torch.int64) if positions is None else positions,
        backend=backend,
    )


def murmur3_of_bytes(data: bytes) -> int:
    """Return MurmurHash3_x86_32 with seed 0 of whole 4-byte blocks, by its definition."""
    mask = 0xFFFFFFFF
    state = 0
    for start in range(0, len(data), 4):
        block = int.from_bytes(data[start : start + 4], "little") * 0xCC9E2D51 & mask
        block = ((block << 15 | block >> 17) & mask) * 0x1B873593 & mask
        state ^= block
        state = ((state << 13 | state >> 19) & mask) * 5 + 0xE6546B64 & mask
    state ^= len(data)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        state = (state ^ state >> shift) * factor & mask
    return state ^ state >> 16


def test_the_hash_is_murmur3() -> None:
    # Published check value of MurmurHash3_x86_32 for "test" with seed 0.
    assert murmur3_of_bytes(b"test") == 0xBA6BD213
    word = torch.tensor(int.from_bytes(b"test", "little"))
    assert int(murmur3((word,))) == 0xBA6BD213
    blocks = (-5, 2**40 + 7, 12, 49151)
    data = b"".join((block & 0xFFFFFFFF).to_bytes(4, "little") for block in blocks)
    assert int(murmur3(tuple(torch.tensor(block) for block in blocks))) == murmur3_of_bytes(data)


def test_noise_is_gumbel_distributed() -> None:
    noise = gumbel_noise(
        torch.arange(20)[:, None], torch.tensor([[3]]), torch.arange(50_000)[None]
    ).double()
    # The mean is Euler's constant, the variance pi^2 / 6; a million samples, four standard errors.
    assert abs(noise.mean().item() - 0.57722) < 4 * 1.2825 / 1000
    assert abs(noise.var().item() - math.pi**2 / 6) < 4 * 2.9 / 1000
    assert noise.isfinite().all()
    # The tail decides: P(g > 5) = 1 - exp(-exp(-5)).
    share = (noise > 5).double().mean().item()
    expected = 1 - math.exp(-math.exp(-5))
    assert abs(share - expected) < 4 * math.sqrt(expected / 1e6)


@pytest.mark.feature("temperature")
@BACKENDS
@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_samples_follow_the_softmax(temperature: float, backend: Backend) -> None:
    num_samples = 20_000
    row = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -2.0, 1.5, -30.0])
    # Half of the samples vary the seed, half the position, like requests and their tokens.
    index = torch.arange(num_samples)
    seeds = torch.where(index % 2 == 0, index * 7_000_000_007, 99)
    positions = torch.where(index % 2 == 0, 0, index)
    tokens = sample_rows(
        row.expand(num_samples, -1),
        temperature=temperature,
        seeds=seeds,
        positions=positions,
        backend=backend,
    )
    counts = Counter(tokens.tolist())
    expected = torch.softmax(row / temperature, 0) * num_samples
    chi2 = sum((counts[i] - expected[i].item()) ** 2 / expected[i].item() for i in range(7))
    assert chi2 < 22.5  # 6 degrees of freedom: exceeded by chance once in a thousand
    assert counts[7] <= 1


@BACKENDS
def test_temperature_zero_takes_the_largest_logit_and_the_first_of_equals(
    backend: Backend,
) -> None:
    logits = torch.randn(9, 1001, generator=torch.Generator().manual_seed(0))
    assert torch.equal(sample_rows(logits, temperature=0.0, backend=backend), logits.argmax(-1))
    logits[4, [70, 500, 900]] = 50.0
    mixed = sample_rows(logits, temperature=[0.0, 1.0] * 4 + [0.0], backend=backend)
    assert mixed[4] == 70
    assert torch.equal(mixed[::2][[0, 1, 3, 4]], logits.argmax(-1)[::2][[0, 1, 3, 4]])


def sampled_set(
    row: Tensor, backend: Backend, num_samples: int = 3000, top_k: int = 0, top_p: float = 1.0
) -> set[int]:
    rows = row.expand(num_samples, -1)
    return set(sample_rows(rows, top_k=top_k, top_p=top_p, backend=backend).tolist())


@pytest.mark.feature("top_k")
@BACKENDS
@pytest.mark.parametrize("k", [1, 2, 5])
def test_top_k_keeps_the_k_largest(k: int, backend: Backend) -> None:
    row = torch.tensor([0.3, 1.0, -0.2, 0.9, 0.1, 0.8, 0.7])
    assert sampled_set(row, backend, top_k=k) == set(row.topk(k).indices.tolist())


@BACKENDS
def test_top_k_beyond_the_vocabulary_keeps_everything(backend: Backend) -> None:
    assert sampled_set(torch.zeros(6), backend, top_k=1000) == set(range(6))


@pytest.mark.feature("top_p")
@BACKENDS
@pytest.mark.parametrize(
    ("p", "kept"),
    [(0.05, {1}), (0.39, {1}), (0.41, {1, 3}), (0.69, {1, 3}), (0.71, {0, 1, 3}), (1.0, None)],
)
def test_top_p_keeps_the_fewest_that_reach_p(p: float, kept: set[int], backend: Backend) -> None:
    row = torch.tensor([0.15, 0.40, 0.10, 0.30, 0.05]).log()
    assert sampled_set(row, backend, top_p=p) == (kept or set(range(5)))


@BACKENDS
def test_top_p_renormalises_over_the_tokens_of_top_k(backend: Backend) -> None:
    # Of the two tokens that top-k keeps, the first has 0.4 / 0.7 = 0.57 of the mass.
    row = torch.tensor([0.15, 0.40, 0.10, 0.30, 0.05]).log()
    assert sampled_set(row, backend, top_k=2, top_p=0.5) == {1}
    assert sampled_set(row, backend, top_k=2, top_p=0.6) == {1, 3}


@pytest.mark.feature("min_p")
@BACKENDS
@pytest.mark.parametrize(("p", "temperature"), [(0.05, 1.0), (0.3, 1.7), (1.0, 0.5)])
def test_min_p_keeps_the_tokens_of_transformers(
    p: float, temperature: float, backend: Backend
) -> None:
    logits = 2 * torch.randn(12, 40, generator=torch.Generator().manual_seed(5))
    warm = logits / temperature
    ids = torch.LongTensor([[0]] * 12)
    kept = MinPLogitsWarper(p)(ids, torch.FloatTensor(warm)).isfinite()
    drawn = torch.zeros_like(kept)
    for position in range(300):
        positions = torch.full((12,), position)
        tokens = sample_rows(
            logits,
            temperature=temperature,
            min_p_gap=min_p_gap(p, temperature),
            positions=positions,
            backend=backend,
        )
        drawn[torch.arange(12), tokens] = True
    assert not bool((drawn & ~kept).any())
    assert int(drawn.sum()) >= 0.7 * int(kept.sum()), "others than the likeliest are sampled too"


@pytest.mark.feature("min_p")
@BACKENDS
def test_min_p_goes_before_top_k_and_top_p(backend: Backend) -> None:
    row = torch.tensor([0.15, 0.40, 0.10, 0.30, 0.05]).log()
    gap = min_p_gap(0.35, 1.0)  # keeps 0.15, 0.40 and 0.30, of which 0.40 is 0.47
    rows = row.expand(2000, -1)
    tokens = sample_rows(rows, min_p_gap=gap, top_p=0.46, backend=backend)
    assert set(tokens.tolist()) == {1}
    tokens = sample_rows(rows, min_p_gap=gap, top_k=4, backend=backend)
    assert set(tokens.tolist()) == {0, 1, 3}


@BACKENDS
def test_tokens_that_tie_with_the_last_kept_one_are_kept(backend: Backend) -> None:
    row = torch.tensor([1.0, 2.0, 1.0, 1.0, -5.0])
    assert sampled_set(row, backend, top_k=2) == {0, 1, 2, 3}


@BACKENDS
def test_forbidden_tokens_are_never_sampled(backend: Backend) -> None:
    row = torch.full((50,), -torch.inf)
    row[[7, 31]] = torch.tensor([-3.0, -4.0])
    assert sampled_set(row, backend) == {7, 31}
    assert sampled_set(row, backend, top_p=0.99, top_k=10) == {7, 31}


@BACKENDS
def test_a_row_does_not_depend_on_the_batch(backend: Backend) -> None:
    generator = torch.Generator().manual_seed(1)
    logits = 3 * torch.randn(24, 5003, generator=generator)
    seeds = torch.randint(-(2**63), 2**63 - 1, (24,), generator=generator)
    positions = torch.randint(0, 4000, (24,), generator=generator)
    controls = [(0.0, 0, 1.0), (0.8, 0, 1.0), (1.3, 40, 1.0), (0.7, 0, 0.9), (1.0, 20, 0.5)]
    rows = [controls[row % len(controls)] for row in range(24)]

    def run(order: list[int]) -> dict[int, int]:
        tokens = sample_rows(
            logits[order],
            temperature=[rows[row][0] for row in order],
            top_k=[rows[row][1] for row in order],
            top_p=[rows[row][2] for row in order],
            seeds=seeds[order],
            positions=positions[order],
            backend=backend,
        )
        return dict(zip(order, tokens.tolist(), strict=True))

    together = run(list(range(24)))
    assert run(list(reversed(range(24)))) == together
    alone = {row: run([row])[row] for row in range(24)}
    assert alone == together


@pytest.mark.feature("seed")
@BACKENDS
def test_seed_and_position_fix_the_token_and_change_it(backend: Backend) -> None:
    row = torch.zeros(1, 50_000)
    seed, position = torch.tensor([12]), torch.tensor([5])

    def token(seed: Tensor, position: Tensor) -> int:
        return int(sample_rows(row, seeds=seed, positions=position, backend=backend))

    first = token(seed, position)
    assert token(seed, position) == first
    others = {
        token(seed + 1, position),
        token(seed, position + 1),
        token(seed + 2**32, position),  # the seed's high half counts
        token(-seed, position),
    }
    assert first not in others
    assert len(others) == 4


@pytest.mark.parametrize("vocab_size", [5, 1024, 3001])
def test_the_backends_sample_the_same_tokens(vocab_size: int) -> None:
    generator = torch.Generator().manual_seed(2)
    logits = 4 * torch.randn(60, vocab_size, generator=generator)
    logits[20:40] = logits[20:40].sort(dim=-1).values  # each larger than all before it
    logits[40:50] = (logits[40:50] / 8).round()  # many equals
    logits[50:] /= 40  # nearly flat
    controls = (
        torch.tensor([0.0, 0.3, 1.0, 1.7] * 15),
        torch.tensor([0, 0, 50, 7, 1, vocab_size // 2] * 10),
        torch.tensor([1.0, 0.9, 0.2, 0.999, 1.0] * 12),
        torch.tensor([-math.inf, -math.inf, -4.0, -0.5, 0.0, -9.0] * 10),
        torch.randint(-(2**63), 2**63 - 1, (60,), generator=generator),
        torch.arange(60),
    )
    reference = sample(logits, *controls, backend="reference")
    assert torch.equal(sample(logits, *controls, backend="numpy"), reference)
    for isa in ISAS_OF_FLOATS:
        sampled = sample_cpp(logits, *controls, library=load_library(build_library(isa)))
        assert torch.equal(sampled, reference), isa.name


def test_the_cpp_backend_takes_rows_that_lie_apart() -> None:
    wide = torch.randn(7, 300, generator=torch.Generator().manual_seed(4))
    rows = wide[:, 20:220]
    assert torch.equal(
        sample_rows(rows, backend="cpp"), sample_rows(rows.clone(), backend="reference")
    )


def test_a_small_change_of_the_logits_seldom_changes_the_token() -> None:
    generator = torch.Generator().manual_seed(3)
    logits = 3 * torch.randn(300, 4096, generator=generator)
    shaken = logits + 1e-3 * torch.randn(logits.shape, generator=generator)
    assert (sample_rows(logits) != sample_rows(shaken)).sum() <= 3


@pytest.mark.parametrize("backend", ["numpy", "cpp"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_row_without_a_distribution_still_gets_a_valid_id(value: float, backend: Backend) -> None:
    logits = torch.randn(3, 100)
    logits[1] = value
    logits[2, 7] = value
    for tokens in (
        sample_rows(logits, backend=backend),
        sample_rows(logits, backend=backend, top_k=5, top_p=0.9),
        sample_rows(logits, backend=backend, temperature=0.0),
    ):
        assert ((tokens >= 0) & (tokens < 100)).all()


def test_arguments_that_do_not_match_are_named() -> None:
    rows = torch.zeros(3, 10)
    with pytest.raises(ValueError, match="logits must be"):
        sample_rows(rows.double())
    with pytest.raises(ValueError, match=r"seeds must be \[3\] torch\.int64"):
        sample_rows(rows, seeds=torch.zeros(3))
    with pytest.raises(ValueError, match=r"top_k must be \[3\].*got \[2\]"):
        sample_rows(rows, top_k=[1, 2])


@BACKENDS
def test_rows_are_checked_for_a_finite_maximum_and_sampled_as_without_a_check(
    backend: Backend,
) -> None:
    logits = torch.randn(5, 40, generator=torch.Generator().manual_seed(3))
    logits[1, 39] = torch.nan
    logits[2] = -torch.inf
    logits[3, 7] = torch.inf
    logits[4, 1:] = -torch.inf
    ones, whole = torch.ones(5), torch.zeros(5, dtype=torch.int64)
    controls = (ones, whole, ones, ones * -torch.inf, torch.arange(5), whole)
    token_ids, is_finite = sample_and_check(logits, *controls, backend=backend)
    assert is_finite.tolist() == [True, False, False, False, True]
    want = sample(logits, *controls, backend=backend)
    assert token_ids[is_finite].tolist() == want[is_finite].tolist()
