"""A faulty request, or a lack of memory, does not affect other requests."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaForCausalLM

from batchmill.engine import Engine, RequestError, RequestOutput, SamplingParams
from batchmill.engine.loading.loading import LoadedModel

from .tiny_model import POISON, Fuse, load, run, save_model

GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
OUT_OF_MEMORY = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory."),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiny-model")


@pytest.fixture(scope="module")
def hf_model(folder: Path) -> LlamaForCausalLM:
    return save_model(folder)


@pytest.fixture(scope="module")
def tiny_model(folder: Path, hf_model: LlamaForCausalLM, fuse: Fuse) -> LoadedModel:
    return load(folder, fuse)


def last_outputs(engine: Engine) -> dict[str, RequestOutput]:
    return {name: news[-1] for name, news in run(engine).items()}


def random_prompt(rng: random.Random, most: int) -> list[int]:
    return [rng.randrange(256) for _ in range(rng.randint(1, most))]


def transformers_choices(
    model: LlamaForCausalLM, prompt: list[int], output: list[int]
) -> list[int]:
    """Return the token that transformers would choose at each place of an output, given its prefix.

    If they equal the output, it is the one that transformers generates greedily.
    """
    with torch.inference_mode():
        logits = model(torch.tensor([prompt + output])).logits[0]
    chosen: list[int] = logits[len(prompt) - 1 : -1].argmax(dim=-1).tolist()
    return chosen


def test_random_trace_under_constant_preemption_equals_transformers(
    make_engine: Callable[..., Engine], hf_model: LlamaForCausalLM
) -> None:
    rng = random.Random(5)
    prefixes = [random_prompt(rng, 12) for _ in range(4)]
    trace = [
        (
            f"request {index}",
            rng.choice([[], *prefixes]) + random_prompt(rng, 6),
            SamplingParams(temperature=0, max_tokens=rng.randint(8, 40), ignore_eos=True),
            rng.randint(0, 2),
        )
        for index in range(64)
    ]
    engine = make_engine(num_blocks=16, max_num_seqs=12, max_num_batched_tokens=32)
    outputs: dict[str, RequestOutput] = {}
    arriving = list(trace)
    while arriving or engine.has_unfinished():
        for name, prompt, params, priority in arriving[:4]:
            engine.add_request(name, prompt, params, priority=priority)
        del arriving[:4]
        outputs |= {output.request_id: output for output in engine.step()}
        engine._scheduler.check_invariants()
    assert engine.stats().num_preemptions > 64
    for name, prompt, params, _ in trace:
        token_ids = outputs[name].token_ids
        assert len(token_ids) == params.max_tokens
        assert token_ids == transformers_choices(hf_model, prompt, token_ids)


def test_poison_at_the_end_of_a_chunk_reaches_no_request_with_the_same_prefix(
    make_engine: Callable[..., Engine],
) -> None:
    prefix = list(range(1, 15))
    (expected,) = make_engine().generate([[*prefix, 9]], GREEDY)
    engine = make_engine(max_num_batched_tokens=16)
    engine.add_request("poisoned", [*prefix, 77, POISON, *prefix], GREEDY)
    engine.step()
    assert engine.stats().num_running == 1, "half of its prompt is computed, no token shows it"
    engine.add_request("good", [*prefix, 9], GREEDY)
    outputs = last_outputs(engine)
    assert outputs["poisoned"].finish_reason == "error"
    assert outputs["good"].token_ids == expected.token_ids


def test_blocks_of_an_aborted_poisoned_request_harm_no_other_request(
    make_engine: Callable[..., Engine],
) -> None:
    (expected,) = make_engine().generate([[1, 2]], GREEDY)
    engine = make_engine(num_blocks=16, max_num_batched_tokens=16)
    engine.add_request("poisoned", [POISON] * 40, GREEDY)
    engine.step()
    engine.abort("poisoned")
    engine.add_request("good", [1, 2], GREEDY)
    assert last_outputs(engine)["good"].token_ids == expected.token_ids


def test_poisoned_request_fails_and_the_31_beside_it_are_untouched(
    make_engine: Callable[..., Engine],
) -> None:
    rng = random.Random(6)
    prompts = {f"good {index}": random_prompt(rng, 20) for index in range(31)}
    outputs = []
    for is_poisoned in (False, True):
        engine = make_engine(num_blocks=300, max_num_seqs=32)
        for index, (name, prompt) in enumerate(prompts.items()):
            if is_poisoned and index == 15:
                engine.add_request("poisoned", [*prompt[:8], POISON, 1, 2], GREEDY)
            engine.add_request(name, prompt, GREEDY)
        outputs.append(last_outputs(engine))
    poisoned = outputs[1].pop("poisoned")
    assert poisoned.finish_reason == "error"
    assert poisoned.error is not None
    assert poisoned.error.code == "numerical_error"
    for name in prompts:
        assert outputs[0][name].token_ids == outputs[1][name].token_ids
        assert outputs[0][name].text == outputs[1][name].text
        assert outputs[0][name].finish_reason == outputs[1][name].finish_reason == "length"


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=lambda error: type(error).__name__)
def test_out_of_memory_makes_steps_smaller_and_changes_no_token(
    make_engine: Callable[..., Engine], fuse: Fuse, error: Exception
) -> None:
    prompts = [[index] * (index + 1) for index in range(8)]
    expected = [output.token_ids for output in make_engine().generate(prompts, GREEDY)]
    fuse.error, fuse.max_num_tokens = error, 5
    engine = make_engine()
    assert [output.token_ids for output in engine.generate(prompts, GREEDY)] == expected
    stats = engine.stats()
    assert stats.num_out_of_memory > 0
    assert stats.num_preemptions > 0


def test_request_too_large_for_memory_fails_and_the_others_are_done(
    make_engine: Callable[..., Engine], fuse: Fuse
) -> None:
    prompts = {"small 1": [1, 2], "large": [3] * 40, "small 2": [4]}
    expected = {name: make_engine().generate([each], GREEDY)[0] for name, each in prompts.items()}
    fuse.error, fuse.max_num_tokens = MemoryError(), 4
    engine = make_engine()
    for name, prompt in prompts.items():
        engine.add_request(name, prompt, GREEDY)
    outputs = last_outputs(engine)
    large = outputs["large"]
    assert (large.finish_reason, large.token_ids) == ("error", [])
    assert large.error is not None
    assert large.error.code == "out_of_memory"
    for name in ("small 1", "small 2"):
        assert outputs[name].token_ids == expected[name].token_ids
        assert outputs[name].finish_reason == "length"


def test_requests_past_their_deadline_end_with_what_they_have(
    make_engine: Callable[..., Engine],
) -> None:
    engine = make_engine(max_num_seqs=1)
    (whole,) = engine.generate([[1, 2, 3]], GREEDY)
    until = time.monotonic() + 0.05
    engine.add_request("runs", [1, 2, 3], GREEDY, deadline_s=0.05)
    engine.add_request("waits", [4], GREEDY, deadline_s=0.05)
    engine.add_request("has time", [1, 2, 3], GREEDY, deadline_s=600)
    outputs = {output.request_id: output for output in engine.step()}
    while time.monotonic() <= until + 0.05:
        pass
    outputs |= last_outputs(engine)
    for name in ("runs", "waits"):
        late = outputs[name]
        assert late.finish_reason == "abort"
        assert late.error is not None
        assert late.error.code == "deadline_exceeded"
    assert outputs["runs"].token_ids == whole.token_ids[: len(outputs["runs"].token_ids)]
    assert outputs["waits"].token_ids == []
    assert outputs["has time"].token_ids == whole.token_ids
    assert outputs["has time"].error is None


def test_urgent_request_takes_a_running_ones_place_and_both_are_as_alone(
    make_engine: Callable[..., Engine],
) -> None:
    engine = make_engine(max_num_seqs=1)
    expected = [output.token_ids for output in engine.generate([[1, 2], [3]], GREEDY)]
    engine.add_request("low", [1, 2], GREEDY, priority=2)
    for _ in range(3):
        engine.step()
    engine.add_request("high", [3], GREEDY, priority=0)
    outputs = run(engine)
    assert list(outputs) == ["high", "low"], "in the order in which they were computed"
    assert [outputs[name][-1].token_ids for name in ("low", "high")] == expected
    assert outputs["low"][-1].metrics.num_preemptions == 1


@pytest.mark.parametrize("order", [{"priority": "high"}, {"deadline_s": 0.0}, {"priority": True}])
def test_invalid_priority_or_deadline_is_refused(
    make_engine: Callable[..., Engine], order: dict[str, Any]
) -> None:
    engine = make_engine()
    with pytest.raises(RequestError, match=f"{next(iter(order))} is "):
        engine.add_request("a", [1], GREEDY, **order)
    assert not engine.has_unfinished()


def test_64_requests_with_one_prefix_compute_it_once(
    make_engine: Callable[..., Engine],
) -> None:
    prefix = [index % 250 for index in range(200)]
    engine = make_engine(num_blocks=500, max_num_seqs=64, max_model_len=256)
    params = SamplingParams(temperature=0, max_tokens=2, ignore_eos=True)
    prompts = [[*prefix, index] for index in range(64)]
    together = [output.token_ids for output in engine.generate(prompts, params)]
    assert engine.stats().num_computed_tokens == 200 + 64 + 64
    alone = make_engine(num_blocks=500, max_model_len=256, enable_prefix_caching=False)
    assert together == [alone.generate([prompt], params)[0].token_ids for prompt in prompts]


def test_times_of_a_request_are_reported(make_engine: Callable[..., Engine]) -> None:
    engine, started_at_s = make_engine(), time.monotonic()
    (output,) = engine.generate([[1, 2, 3]], GREEDY)
    whole_s, metrics = time.monotonic() - started_at_s, output.metrics
    assert metrics.queued_s is not None
    assert metrics.first_token_s is not None
    assert metrics.inter_token_s is not None
    assert metrics.finished_s is not None
    assert 0 <= metrics.queued_s <= metrics.first_token_s < metrics.finished_s
    assert metrics.first_token_s + 11 * metrics.inter_token_s <= whole_s


def test_blocks_that_could_not_be_cleared_are_cleared_before_the_next_step(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = list(range(20))
    (expected,) = make_engine().generate([prompt], GREEDY)
    engine = make_engine(num_blocks=16)
    engine.add_request("poisoned", [POISON] * 40, GREEDY)
    assert last_outputs(engine)["poisoned"].error is not None
    left = list(engine._scheduler.blocks_to_zero)
    assert left

    def no_memory(block_ids: object) -> None:
        raise MemoryError

    engine.add_request("next", prompt, GREEDY)
    with monkeypatch.context() as patch:
        patch.setattr(engine._kv_cache, "zero_blocks", no_memory)
        engine.step()
    assert engine.stats().num_out_of_memory == 1
    assert set(left) <= set(engine._scheduler.blocks_to_zero)
    assert last_outputs(engine)["next"].token_ids == expected.token_ids
    for keys, values in engine._kv_cache.layers:
        assert torch.isfinite(keys).all()
        assert torch.isfinite(values).all()
