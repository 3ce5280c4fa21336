"""Each row is sampled with its own request's controls, whatever the other rows are."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from batchmill.engine import SamplingParams
from batchmill.engine.request.request import Request, derive_seed
from batchmill.engine.request.token_controls import RequestControls
from batchmill.engine.sampling import sampled_tokens
from batchmill.engine.sampling.sampled_tokens import HostBuffers
from batchmill.engine.sampling.sampler import Sampler
from batchmill.engine.scheduling.scheduled_batch import ScheduledBatch, ScheduledRequest
from batchmill.engine.step.request_rows import RequestRows

EOS = 3
VOCAB_SIZE = 50


def request(name: str = "a", output: int = 0, seed: int = 1, **params: Any) -> Request:
    checked = SamplingParams(**params)
    ending = frozenset(checked.stop_token_ids or ()) | ({EOS} if not checked.ignore_eos else set())
    return Request(
        name,
        [1],
        checked,
        seed=seed,
        max_num_tokens=100,
        resumed_token_ids=[5] * output,
        controls=RequestControls(checked, [1], ending_token_ids=ending),
    )


def batch_of(*requests: Request) -> ScheduledBatch:
    return ScheduledBatch(
        chunks=tuple(ScheduledRequest(each, each.num_tokens - 1, 1, True) for each in requests)
    )


def make_sampler() -> Sampler:
    return Sampler(VOCAB_SIZE, RequestRows(8, "cpu"))


def random_logits(rows: int) -> torch.Tensor:
    return torch.randn(rows, VOCAB_SIZE, generator=torch.Generator().manual_seed(0))


@pytest.mark.feature("temperature")
def test_temperature_0_takes_the_likeliest_token() -> None:
    logits = random_logits(3)
    expected = logits.argmax(dim=-1).tolist()
    sampler = make_sampler()
    requests = [request(str(index), temperature=0) for index in range(3)]
    assert sampler.sample(logits, batch_of(*requests)).collect() == expected


def test_token_does_not_depend_on_the_rest_of_the_batch() -> None:
    logits = random_logits(4)
    requests = [
        request("a", output=3, seed=11, temperature=1.3),
        request("b", seed=12, top_k=5),
        request("c", output=9, seed=13, top_p=0.7),
        request("d", temperature=0),
    ]
    together = make_sampler().sample(logits.clone(), batch_of(*requests)).collect()
    sampler = make_sampler()
    alone = [
        sampler.sample(logits[row : row + 1].clone(), batch_of(each)).collect()[0]
        for row, each in reversed(list(enumerate(requests)))
    ]
    assert together == alone[::-1]


@pytest.mark.feature("seed")
def test_same_position_samples_the_same_token_and_others_do_not() -> None:
    sampler = make_sampler()
    logits = torch.zeros(1, VOCAB_SIZE)
    tokens = [
        sampler.sample(logits.clone(), batch_of(request(output=output, seed=7))).collect()[0]
        for output in (*range(20), *range(20))
    ]
    assert tokens[:20] == tokens[20:]
    assert len(set(tokens)) > 5


def test_a_top_p_that_float32_cannot_hold_keeps_the_likeliest_token() -> None:
    logits = random_logits(1)
    least = request(top_p=1e-60, temperature=1.0)
    batch = batch_of(least)
    sampler = make_sampler()
    assert sampler.sample(logits.clone(), batch).collect() == logits.argmax(dim=-1).tolist()
    rows = RequestRows(1, "cpu")
    rows.rows_of(batch)
    assert rows.top_p[0] > 0


def test_controls_follow_the_rows_when_requests_come_and_go() -> None:
    logits = random_logits(2)
    greedy, top = request("a", temperature=0), request("b", seed=3, top_k=2)
    sampler = make_sampler()
    both = sampler.sample(logits.clone(), batch_of(greedy, top)).collect()
    swapped = sampler.sample(logits.flip(0), batch_of(top, greedy)).collect()
    assert both == swapped[::-1]
    assert sampler.sample(logits[1:].clone(), batch_of(top)).collect() == both[1:]


def test_tokens_that_end_a_request_are_not_sampled_below_its_minimum() -> None:
    logits = torch.zeros(3, VOCAB_SIZE)
    logits[:, EOS], logits[:, 8], logits[:, 9] = 30, 20, 10
    params: dict[str, Any] = {"temperature": 0, "min_tokens": 2, "stop_token_ids": [8]}
    requests = [
        request("under", output=1, **params),
        request("at", output=2, **params),
        request("ignores", output=1, ignore_eos=True, **params),
    ]
    assert make_sampler().sample(logits, batch_of(*requests)).collect() == [9, EOS, EOS]


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_row_that_is_not_finite_yields_no_token_and_harms_no_other(broken: float) -> None:
    logits = random_logits(3)
    expected = logits.argmax(dim=-1).tolist()
    logits[1, 4] = broken
    requests = [request(str(index), temperature=0) for index in range(3)]
    tokens = make_sampler().sample(logits, batch_of(*requests)).collect()
    assert tokens == [expected[0], None, expected[2]]


def test_derived_seed_is_stable_and_unique_per_request_and_engine() -> None:
    # A constant, because a request resumed on another host must get the same seed.
    assert derive_seed(0, "job-1") == 5344306761977290471
    seeds = {derive_seed(seed, f"job-{job}") for seed in range(3) for job in range(100)}
    assert len(seeds) == 300
    assert all(-(2**63) <= seed < 2**63 for seed in seeds)


def test_step_in_which_no_row_samples_is_waited_for_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Otherwise chunks of a long prompt would pile up on the device."""
    devices = []

    class Recorded(HostBuffers):
        def __init__(self, num_rows: int, device: torch.device) -> None:
            devices.append((num_rows, device.type))
            super().__init__(num_rows, device)

        def begin_copy(self, *tensors: torch.Tensor | None) -> None:
            """Do nothing, because there is no data."""

    monkeypatch.setattr(sampled_tokens, "HostBuffers", Recorded)
    sampler = Sampler(VOCAB_SIZE, RequestRows(8, "meta"))
    batch = ScheduledBatch(chunks=(ScheduledRequest(request(), 0, 1, needs_sample=False),))
    logits = torch.empty(0, VOCAB_SIZE, device="meta")
    assert sampler.sample(logits, batch).collect() == []
    assert devices == [(0, "meta")]
