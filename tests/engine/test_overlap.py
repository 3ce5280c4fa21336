"""Scheduling a step while the one before it is in flight changes no token and loses no block."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest

from batchmill.engine import ConfigError, Engine, EngineConfig, RequestOutput, SamplingParams

from .tiny_model import POISON, Fuse, run

GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)


@pytest.fixture
def make_engine(make_engine: Callable[..., Engine]) -> Callable[..., Engine]:
    return partial(make_engine, overlap=True)


@dataclass
class Arrival:
    """One request of a random trace."""

    name: str
    prompt: list[int]
    params: SamplingParams
    arrives_at_step: int
    aborted_after_steps: int | None
    priority: int
    num_resumed: int
    resumed: list[int] = field(default_factory=list)


def random_params(rng: random.Random) -> SamplingParams:
    """Every kind of end, and of control that has to know the last token."""
    values: dict[str, Any] = {"max_tokens": rng.randint(1, 20), "ignore_eos": rng.random() < 0.5}
    values["temperature"] = rng.choice([0, 0.8, 1.2])
    for chance, name, value in (
        (0.3, "stop", [chr(rng.randrange(97, 123)) for _ in range(3)]),
        (0.3, "stop_token_ids", [rng.randrange(256) for _ in range(20)]),
        (0.2, "seed", rng.randrange(9)),
        (0.1, "n", 3),
        (0.05, "min_p", 0.1),
        (0.05, "repetition_penalty", 1.3),
        (0.05, "no_repeat_ngram_size", 2),
        (0.05, "logprobs", 2),
        (0.05, "min_tokens", 1),
    ):
        if rng.random() < chance:
            values[name] = value
    if rng.random() < 0.04:
        values = {"structured_outputs": {"regex": "[a-z]{2,8}"}, "max_tokens": 20}
    return SamplingParams(**values)


def random_trace(rng: random.Random, num_requests: int) -> list[Arrival]:
    prefixes = [[rng.randrange(256) for _ in range(rng.randint(1, 12))] for _ in range(3)]
    trace = []
    for index in range(num_requests):
        params = random_params(rng)
        poison = [POISON] if rng.random() < 0.06 else []
        suffix = [rng.randrange(256) for _ in range(rng.randint(1, 6))]
        is_resumed = rng.random() < 0.2 and params.n == 1 and not poison
        trace.append(
            Arrival(
                f"request {index}",
                rng.choice([[], *prefixes]) + poison + suffix,
                params,
                rng.randint(0, 40),
                rng.randint(0, 12) if rng.random() < 0.15 else None,
                rng.randint(0, 2),
                rng.randint(1, 4) if is_resumed else 0,
            )
        )
    return sorted(trace, key=lambda each: each.arrives_at_step)


def run_trace(engine: Engine, trace: list[Arrival]) -> dict[str, list[RequestOutput]]:
    outputs: dict[str, list[RequestOutput]] = {}
    abort_at: dict[int, list[str]] = {}
    waiting, step = list(trace), 0
    while waiting or engine.has_unfinished():
        while waiting and waiting[0].arrives_at_step <= step:
            each = waiting.pop(0)
            engine.add_request(
                each.name, each.prompt, each.params, each.resumed, priority=each.priority
            )
            if each.aborted_after_steps is not None:
                abort_at.setdefault(step + each.aborted_after_steps, []).append(each.name)
        for name in abort_at.pop(step, []):
            engine.abort(name)
        for output in engine.step():
            outputs.setdefault(output.request_id, []).append(output)
        engine._scheduler.check()
        step += 1
        assert step < 5_000, "a livelock"
    return outputs


def whole(output: RequestOutput) -> list[tuple[Any, ...]]:
    """What has to be equal of a finished request."""
    return [
        (
            each.token_ids,
            each.text,
            each.finish_reason,
            each.stop_reason,
            None if each.error is None else each.error.code,
            None if each.logprobs is None else [list(scores) for scores in each.logprobs],
        )
        for each in output.completions
    ]


@pytest.mark.parametrize("seed", range(8))
def test_random_trace_gives_the_same_outputs_with_and_without_overlap(
    make_engine: Callable[..., Engine], seed: int
) -> None:
    rng = random.Random(seed)
    trace = random_trace(rng, num_requests=40)
    settings = {"max_num_seqs": rng.choice([3, 12]), "max_num_batched_tokens": 32}
    alone = make_engine(num_blocks=200, overlap=False, enable_prefix_caching=False)
    for each in trace:
        if each.num_resumed:
            (output,) = alone.generate([each.prompt], [each.params])
            each.resumed = output.token_ids[: min(each.num_resumed, len(output.token_ids) - 1)]
    expected = run_trace(make_engine(num_blocks=16, overlap=False, **settings), trace)
    engine = make_engine(num_blocks=16, overlap=True, **settings)
    outputs = run_trace(engine, trace)
    assert outputs.keys() == expected.keys()
    for each in trace:
        news, want = outputs[each.name], expected[each.name][-1]
        assert "".join(output.new_text for output in news) == news[-1].text or each.resumed
        told = [token for output in news for token in output.new_token_ids]
        assert each.resumed + told == news[-1].token_ids
        if each.aborted_after_steps is None:
            assert whole(news[-1]) == whole(want), each
        else:
            least = min(len(news[-1].token_ids), len(want.token_ids))
            assert news[-1].token_ids[:least] == want.token_ids[:least]


def test_step_is_reported_by_the_call_after_the_one_that_launched_it(
    make_engine: Callable[..., Engine],
) -> None:
    engine = make_engine()
    engine.add_request("a", [1, 2, 3], SamplingParams(temperature=0, max_tokens=3, ignore_eos=True))
    news = []
    while engine.has_unfinished():
        news.append([output.new_token_ids for output in engine.step()])
    assert [len(each) for each in news] == [0, 1, 1, 1]
    assert engine.stats().num_steps == 3, "a request that ends by its length is not computed on"


def test_request_that_stops_is_computed_once_too_often_and_that_token_is_nobodys(
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


def test_requests_that_need_their_last_token_are_not_run_ahead(
    make_engine: Callable[..., Engine],
) -> None:
    engine = make_engine()
    params = SamplingParams(temperature=0, max_tokens=5, ignore_eos=True, repetition_penalty=1.5)
    engine.add_request("a", [1, 2, 3], params)
    assert [len(engine.step()) for _ in range(5)] == [1] * 5


def test_failed_launch_leaves_the_step_in_flight_as_it_is(
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
        engine._scheduler.check()
    fuse.reset()
    assert run(engine)["a"][-1].token_ids == expected.token_ids


def test_memory_that_runs_out_beside_a_step_in_flight_changes_no_token(
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
    engine._scheduler.check()
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
    fuse.max_num_tokens = 5  # the prompts pass one by one, a step of six decodes does not
    with pytest.raises(RuntimeError, match="the device is lost"):
        engine.generate([[1]] * 8, GREEDY)
    assert engine._pipeline.num_in_flight == 0
    assert engine.num_free_blocks == engine.stats().num_blocks


def test_steps_overlap_by_default_where_there_is_a_device_beside_the_host() -> None:
    config = EngineConfig(model="tiny")
    assert (config.overlaps_on("cuda"), config.overlaps_on("cpu")) == (True, False)
    assert EngineConfig(model="tiny", overlap=True).overlaps_on("cpu")
    assert not EngineConfig(model="tiny", overlap=False).overlaps_on("cuda")
    with pytest.raises(ConfigError, match="overlap is 'yes'"):
        EngineConfig(model="tiny", overlap="yes")  # type: ignore[arg-type]
