"""Scheduling a step while the previous one is in flight changes no token and loses no block."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from batchmill.engine import ConfigError, Engine, EngineConfig, SamplingParams
from batchmill.engine.request.outputs import RequestOutput
from batchmill.engine.sampling.logits_processor import LogitsProcessor
from batchmill.engine.scheduling.scheduled_batch import StepKind

from ..tiny_model import POISON, Fuse, run
from ..traces import check_equal, random_trace, resume, run_trace

GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)


@pytest.fixture
def make_engine(make_engine: Callable[..., Engine]) -> Callable[..., Engine]:
    return partial(make_engine, overlap=True)


@pytest.mark.parametrize("seed", range(8))
def test_random_trace_gives_the_same_outputs_with_and_without_overlap(
    make_engine: Callable[..., Engine], seed: int
) -> None:
    rng = random.Random(seed)
    trace = random_trace(rng, num_requests=40)
    settings = {"max_num_seqs": rng.choice([3, 12]), "max_num_batched_tokens": 32}
    alone = make_engine(num_blocks=200, overlap=False, enable_prefix_caching=False)
    resume(alone, trace)
    expected = run_trace(make_engine(num_blocks=16, overlap=False, **settings), trace)
    engine = make_engine(num_blocks=16, overlap=True, **settings)
    outputs = run_trace(engine, trace)
    check_equal(trace, outputs, expected)


def test_step_is_reported_by_the_call_after_the_one_that_launched_it(
    make_engine: Callable[..., Engine],
) -> None:
    engine = make_engine()
    engine.add_request("a", [1, 2, 3], SamplingParams(temperature=0, max_tokens=3, ignore_eos=True))
    new_tokens = []
    while engine.has_unfinished():
        new_tokens.append([output.new_token_ids for output in engine.step()])
    assert [len(each) for each in new_tokens] == [0, 1, 1, 1]
    assert engine.stats().num_steps == 3, (
        "a request that ends by its length is not computed further"
    )


def test_request_that_stops_is_computed_once_too_often_and_that_token_is_dropped(
    make_engine: Callable[..., Engine],
) -> None:
    (free,) = make_engine(overlap=False).generate([[1, 2, 3]], GREEDY)
    stop = free.token_ids[4]
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, stop_token_ids=[stop])
    engine = make_engine()
    (output,) = engine.generate([[1, 2, 3]], params)
    length = free.token_ids.index(stop) + 1
    assert output.token_ids == free.token_ids[:length]
    stats = engine.stats()
    assert stats.num_steps == length + 1
    assert stats.num_generated_tokens == length


#: Controls that follow the tokens, others, and scores; none takes a step out of the overlap.
CONTROLS: list[dict[str, Any]] = [
    {"repetition_penalty": 1.5},
    {"no_repeat_ngram_size": 1},
    {"min_tokens": 4},
    {"logit_bias": {7: 3.0}},
    {"allowed_token_ids": [5, 6, 7]},
    {"min_p": 0.3, "temperature": 1.0},
    {"typical_p": 0.5, "temperature": 1.0},
    {"logprobs": 2, "entropy": True},
    {"prompt_logprobs": 1, "logprobs": 0},
]


@pytest.mark.parametrize("decode_graphs", [False, True], ids=["kernels", "graphs"])
@pytest.mark.parametrize("controls", CONTROLS, ids=lambda each: next(iter(each)))
def test_step_with_a_controlled_row_overlaps_and_is_replayed(
    make_engine: Callable[..., Engine], controls: dict[str, Any], decode_graphs: bool
) -> None:
    controlled = SamplingParams(
        **{"temperature": 0, "seed": 3, "max_tokens": 6, "ignore_eos": True, **controls}
    )
    plain = replace(GREEDY, max_tokens=6)
    outputs = []
    for overlap in (False, True):
        engine = make_engine(overlap=overlap, decode_graphs=decode_graphs)
        engine.add_request("controlled", [1, 2, 3], controlled)
        engine.add_request("plain", [4, 5, 6], plain)
        lengths: list[int] = []
        last: dict[str, RequestOutput] = {}
        while engine.has_unfinished():
            reported = engine.step()
            lengths.append(len(reported))
            last |= {each.request_id: each for each in reported}
        assert lengths == [0] * overlap + [2] * 6
        kinds = engine.stats().num_steps_by_kind
        assert kinds.get(StepKind.GRAPH, 0) == (5 if decode_graphs else 0)
        outputs.append({name: (x.token_ids, x.logprobs, x.entropies) for name, x in last.items()})
    assert outputs[0] == outputs[1]


@pytest.mark.parametrize("decode_graphs", [False, True], ids=["kernels", "graphs"])
def test_prompt_in_chunks_is_scored_while_steps_overlap(
    make_engine: Callable[..., Engine], decode_graphs: bool
) -> None:
    prompts = [list(range(30)), [4, 5, 6], list(range(50, 69))]
    params = [replace(GREEDY, prompt_logprobs=1, logprobs=0, max_tokens=3), GREEDY, GREEDY]
    params[2] = replace(params[0], repetition_penalty=1.5)
    plain_steps = {"overlap": False, "max_num_batched_tokens": 256}
    variants: list[dict[str, Any]] = [plain_steps, {"overlap": True}]
    outputs = []
    for settings in variants:
        engine = make_engine(
            **{"max_num_batched_tokens": 8, **settings}, decode_graphs=decode_graphs
        )
        outputs.append(engine.generate(prompts, params))
    for plain, overlapped in zip(*outputs, strict=True):
        assert overlapped.token_ids == plain.token_ids
        for name in ("prompt_logprobs", "logprobs"):
            expected, found = getattr(plain, name), getattr(overlapped, name)
            assert (expected is None) == (found is None)
            for one, other in zip(expected or (), found or (), strict=True):
                assert other == (one and pytest.approx(one, abs=1e-4))


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("the device is lost")], ids=type)
def test_sampling_that_fails_after_the_step_before_was_collected_changes_no_token(
    make_engine: Callable[..., Engine], error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    penalised = replace(GREEDY, repetition_penalty=1.5)
    prompts = [[1, 2, 3], [4, 5, 6]]
    expected = make_engine(overlap=False).generate(prompts, penalised)
    engine = make_engine()
    for index, prompt in enumerate(prompts):
        engine.add_request(str(index), prompt, penalised)
    apply, calls = LogitsProcessor.apply, [0]

    def fails_at_times(self: LogitsProcessor, logits: torch.Tensor) -> torch.Tensor | None:
        calls[0] += 1
        if calls[0] % 4 == 3:
            raise error
        return apply(self, logits)

    monkeypatch.setattr(LogitsProcessor, "apply", fails_at_times)
    outputs: dict[str, list[int]] = {}
    while engine.has_unfinished():
        with suppress(RuntimeError):
            outputs |= {each.request_id: each.token_ids for each in engine.step()}
        engine._scheduler.check_invariants()
    assert calls[0] > 12
    assert [outputs[str(index)] for index in range(2)] == [each.token_ids for each in expected]


def test_failed_launch_leaves_the_step_in_flight_unchanged(
    make_engine: Callable[..., Engine], fuse: Fuse
) -> None:
    (expected,) = make_engine(overlap=False).generate([[1, 2, 3]], GREEDY)
    engine = make_engine()
    engine.add_request("a", [1, 2, 3], GREEDY)
    for _ in range(4):
        engine.step()
    fuse.is_blown = True
    for _ in range(2):
        with pytest.raises(RuntimeError, match="the device is lost"):
            engine.step()
        engine._scheduler.check_invariants()
    fuse.reset()
    assert run(engine)["a"][-1].token_ids == expected.token_ids


def test_out_of_memory_beside_a_step_in_flight_changes_no_token(
    make_engine: Callable[..., Engine], fuse: Fuse
) -> None:
    prompts = [[index] * (index + 1) for index in range(8)]
    expected = [output.token_ids for output in make_engine(overlap=False).generate(prompts, GREEDY)]
    engine = make_engine()
    for index, prompt in enumerate(prompts):
        engine.add_request(str(index), prompt, GREEDY)
    for _ in range(3):
        engine.step()
    fuse.error, fuse.max_num_tokens = MemoryError(), 5
    outputs = run(engine)
    assert [outputs[str(index)][-1].token_ids for index in range(8)] == expected
    assert engine.stats().num_out_of_memory > 0


def test_aborted_request_keeps_its_blocks_until_its_last_step_is_collected(
    make_engine: Callable[..., Engine],
) -> None:
    engine = make_engine()
    engine.add_request("a", [1, 2, 3], GREEDY)
    engine.add_request("b", [4, 5, 6], GREEDY)
    engine.step()
    num_free = engine.num_free_blocks
    engine.abort("a")
    assert engine.num_free_blocks == num_free
    engine._scheduler.check_invariants()
    outputs = run(engine)
    assert engine.num_free_blocks == engine.stats().num_blocks
    assert (outputs["a"][-1].finish_reason, outputs["a"][-1].token_ids) == ("abort", [])


def test_nan_that_shows_one_step_late_ends_its_request_alone(
    make_engine: Callable[..., Engine],
) -> None:
    (expected,) = make_engine(overlap=False).generate([[1, 2, 3]], GREEDY)
    engine = make_engine(num_blocks=16)
    engine.add_request("poisoned", [1, 2, 3, 4, POISON], GREEDY)
    engine.add_request("good", [1, 2, 3], GREEDY)
    outputs = run(engine)
    error = outputs["poisoned"][-1].error
    assert error is not None
    assert (error.code, outputs["poisoned"][-1].token_ids) == ("numerical_error", [])
    assert outputs["good"][-1].token_ids == expected.token_ids
    again = engine.generate([[1, 2, 3]] * 3, GREEDY)
    assert [output.token_ids for output in again] == [expected.token_ids] * 3


def test_generate_that_fails_leaves_nothing_in_flight(
    make_engine: Callable[..., Engine], fuse: Fuse
) -> None:
    engine = make_engine()
    fuse.max_num_tokens = 5  # prompts pass one by one; a step of six decodes does not
    with pytest.raises(RuntimeError, match="the device is lost"):
        engine.generate([[1]] * 8, GREEDY)
    assert engine._pipeline.num_in_flight == 0
    assert engine.num_free_blocks == engine.stats().num_blocks


def test_steps_overlap_by_default_on_a_device_other_than_the_host() -> None:
    config = EngineConfig(model="tiny")
    assert (config.overlaps_on("cuda"), config.overlaps_on("cpu")) == (True, False)
    assert EngineConfig(model="tiny", overlap=True).overlaps_on("cpu")
    assert not EngineConfig(model="tiny", overlap=False).overlaps_on("cuda")
    with pytest.raises(ConfigError, match="overlap is 'yes'"):
        EngineConfig(model="tiny", overlap="yes")  # type: ignore[arg-type]
