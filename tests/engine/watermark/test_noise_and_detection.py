"""Which places of an output are marked, and what a detector finds in texts with and without."""

from __future__ import annotations

import math
import random

import pytest
import torch

from batchmill.engine.watermark.detection import detect, gamma_tail
from batchmill.engine.watermark.key import CONTEXT_WIDTH, WatermarkKey, surprise
from batchmill.engine.watermark.noise import WatermarkNoise
from batchmill.kernels.ops.sample import sample
from batchmill.kernels.reference.sample import gumbel_noise

KEY = WatermarkKey("press", "a secret of the operator")
OTHER = WatermarkKey("press", "another secret of the same name")


def test_the_detector_computes_the_uniform_numbers_of_the_sampler() -> None:
    for seed, position, token_id in ((0, 0, 0), (-1, 7, 49_151), (2**63 - 1, 2**20, 3)):
        arguments = (torch.tensor([value]) for value in (seed, position, token_id))
        noise = gumbel_noise(*arguments).item()
        uniform = math.exp(-surprise(seed, position, token_id))
        assert -math.log(-math.log1p(-uniform)) == pytest.approx(noise, rel=1e-5)


@pytest.mark.parametrize("shape", [1, 2, 50, 196, 3000])
def test_p_values_are_those_of_the_gamma_distribution(shape: int) -> None:
    for factor in (0.2, 0.9, 1.0, 1.1, 2.0):
        value = shape * factor
        expected = torch.special.gammaincc(
            torch.tensor(float(shape), dtype=torch.float64),
            torch.tensor(value, dtype=torch.float64),
        ).item()
        assert gamma_tail(shape, value) == pytest.approx(expected, rel=1e-8, abs=1e-290)
    assert gamma_tail(shape, 0) == 1
    assert gamma_tail(0, 5.0) == 1
    assert gamma_tail(shape, shape * 5000.0) == 0


def test_the_first_tokens_and_repeated_contexts_keep_the_noise_of_the_seed() -> None:
    output = [1, 2, 3, 4, 5, 1, 2, 3, 4, 6]
    marked = [
        WatermarkNoise(KEY).of_next(output[:length])[0] is not None
        for length in range(len(output) + 1)
    ]
    # The context 1 2 3 4 comes again before the last token.
    assert marked == [False] * CONTEXT_WIDTH + [True] * 5 + [False, True]


def test_noise_is_a_function_of_the_tokens_however_they_came() -> None:
    rng = random.Random(3)
    output = [rng.randrange(3) for _ in range(120)]
    expected = [WatermarkNoise(KEY).of_next(output[:length])[0] for length in range(121)]
    noise, length = WatermarkNoise(KEY), 0
    while length < 118:
        right, num_drafts = rng.randrange(4), rng.randrange(4)
        drafts = output[length : length + right] + [9] * num_drafts
        found = noise.of_next(output[:length], drafts)
        assert len(found) == len(drafts) + 1
        # Up to the first wrong draft they are those of one token after another.
        assert found[: right + 1] == expected[length : length + right + 1]
        length += rng.randrange(right + 1) + 1
    assert None in expected[CONTEXT_WIDTH:]


def test_p_values_of_unmarked_tokens_are_uniform() -> None:
    rng = random.Random(0)
    found = sorted(
        # Texts that repeat themselves as well.
        detect(KEY, [rng.randrange(rng.choice((5, 1000))) for _ in range(100)]).p_value
        for _ in range(500)
    )
    # Kolmogorov and Smirnov's distance; 1.63 is exceeded once in a hundred uniform samples.
    distance = max(abs((rank + 0.5) / len(found) - p) for rank, p in enumerate(found))
    assert distance < 1.63 / math.sqrt(len(found))


def generate(key: WatermarkKey | None, num_tokens: int, logits: torch.Tensor) -> list[int]:
    noise = None if key is None else WatermarkNoise(key)
    output: list[int] = []
    for position in range(num_tokens):
        mark = None if noise is None else noise.of_next(output)[0]
        seed, place = mark or (17, position)
        output.append(_sample(logits, [seed], [place])[0])
    return output


def _sample(logits: torch.Tensor, seeds: list[int], positions: list[int]) -> list[int]:
    num_rows = len(seeds)
    token_ids: list[int] = sample(
        logits.expand(num_rows, -1).contiguous(),
        torch.ones(num_rows),
        torch.zeros(num_rows, dtype=torch.int64),
        torch.ones(num_rows),
        torch.full((num_rows,), -torch.inf),
        torch.tensor(seeds),
        torch.tensor(positions),
    ).tolist()
    return token_ids


def test_a_key_is_found_in_its_own_tokens_alone() -> None:
    logits = torch.randn(64, generator=torch.Generator().manual_seed(1))
    marked, plain = generate(KEY, 200, logits), generate(None, 200, logits)
    assert detect(KEY, marked).p_value < 1e-12
    assert detect(OTHER, marked).p_value > 1e-3
    assert detect(KEY, plain).p_value > 1e-3
    # A third of the words replaced, and the beginning cut off.
    rng = random.Random(1)
    edited = [rng.randrange(64) if rng.random() < 0.1 else each for each in marked[37:]]
    assert detect(KEY, edited).p_value < 1e-6


def test_marked_tokens_are_distributed_as_the_model_says() -> None:
    logits = 2 * torch.randn(24, generator=torch.Generator().manual_seed(2))
    rng = random.Random(2)
    contexts = [[rng.randrange(49_152) for _ in range(CONTEXT_WIDTH)] for _ in range(40_000)]
    seeds = [KEY.seed_of(context) for context in contexts]
    found = torch.tensor(_sample(logits, seeds, [0] * len(seeds)))
    expected = logits.softmax(-1) * len(seeds)
    counts = torch.bincount(found, minlength=24)
    chi_square = ((counts - expected) ** 2 / expected).sum().item()
    assert chi_square < 49.7  # 23 degrees of freedom exceed it once in a thousand samples
