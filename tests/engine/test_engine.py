"""The engine's public methods, on a tiny random model whose steps take a millisecond."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from batchmill.engine import (
    ConfigError,
    Engine,
    EngineError,
    RequestError,
    RequestOutput,
    SamplingParams,
)

from .tiny_model import POISON, Fuse, run

PROMPTS = ["a", "Hello, world", "The quick brown fox jumps over it", "x" * 40]
GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)


@pytest.fixture
def expected(make_engine: Callable[..., Engine]) -> list[list[int]]:
    """Return the greedy tokens of each prompt, computed alone in another engine."""
    tokens = [make_engine().generate([prompt], GREEDY)[0].token_ids for prompt in PROMPTS]
    assert len({tuple(each) for each in tokens}) == len(PROMPTS)
    return tokens


@pytest.mark.parametrize(
    ("settings", "preempts", "shares"),
    [
        pytest.param({}, False, True, id="batched"),
        pytest.param({"max_num_batched_tokens": 8}, False, True, id="chunked"),
        pytest.param({"num_blocks": 16}, True, True, id="preempted"),
        pytest.param({"enable_prefix_caching": False}, False, False, id="no prefix cache"),
        pytest.param({"max_num_seqs": 1, "max_num_batched_tokens": 3}, False, True, id="serial"),
        pytest.param({"block_size": 1, "num_blocks": 66}, True, True, id="blocks of one token"),
    ],
)
def test_tokens_do_not_depend_on_how_the_engine_computes_them(
    make_engine: Callable[..., Engine],
    expected: list[list[int]],
    settings: dict[str, Any],
    preempts: bool,
    shares: bool,
) -> None:
    engine = make_engine(**settings)
    for _ in range(2):
        assert [output.token_ids for output in engine.generate(PROMPTS, GREEDY)] == expected
    stats = engine.stats()
    assert ((stats.num_preemptions > 0), (stats.num_cached_tokens > 0)) == (preempts, shares)


def test_text_is_the_decoding_of_the_tokens(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine()
    for output in engine.generate(PROMPTS, GREEDY):
        assert output.text == engine.tokenizer.decode(output.token_ids)
        assert (output.finish_reason, output.usage.completion_tokens) == ("length", 12)


def test_each_prompt_gets_its_own_params_and_outputs_keep_their_order(
    make_engine: Callable[..., Engine],
) -> None:
    lengths = [5, 1, 9, 3]
    params = [
        SamplingParams(temperature=0, max_tokens=length, ignore_eos=True) for length in lengths
    ]
    outputs = make_engine(max_num_seqs=2).generate(PROMPTS, params)
    assert [len(output.token_ids) for output in outputs] == lengths
    assert [output.usage.prompt_tokens for output in outputs] == [len(p) for p in PROMPTS]


@pytest.mark.parametrize(
    "params",
    [GREEDY, SamplingParams(seed=5, temperature=1.2, top_p=0.95, max_tokens=12, ignore_eos=True)],
    ids=["greedy", "sampled"],
)
def test_resumed_request_generates_the_rest_of_the_same_tokens(
    make_engine: Callable[..., Engine], params: SamplingParams
) -> None:
    (whole,) = make_engine().generate(["Hello"], params)
    engine = make_engine()
    for cut in range(13):
        engine.add_request(f"cut {cut}", "Hello", params, whole.token_ids[:cut])
    outputs = run(engine)
    for cut in range(13):
        news, last = outputs[f"cut {cut}"], outputs[f"cut {cut}"][-1]
        assert (last.token_ids, last.text) == (whole.token_ids, whole.text)
        new_token_ids = [token_id for output in news for token_id in output.new_token_ids]
        assert new_token_ids == whole.token_ids[cut:]
        assert last.metrics.num_resumed_tokens == cut
        assert last.usage.completion_tokens == 12


def test_unseeded_request_samples_the_same_tokens_wherever_it_runs(
    make_engine: Callable[..., Engine],
) -> None:
    params = SamplingParams(max_tokens=8, ignore_eos=True)
    tokens = []
    for others in ([], ["other 1", "other 2"]):
        engine = make_engine(seed=3)
        for request_id in [*others, "job"]:
            engine.add_request(request_id, "Hello", params)
        outputs = run(engine)
        tokens.append(outputs["job"][-1].token_ids)
        assert all(outputs[other][-1].token_ids != tokens[0] for other in others)
    assert tokens[0] == tokens[1]


@pytest.mark.parametrize(
    ("resumed", "params", "reason"),
    [
        ([65, 256], {}, "stop"),
        ([65, 66], {"max_tokens": 2}, "length"),
        ([65, 66], {"stop_token_ids": [66]}, "stop"),
    ],
)
def test_request_that_its_resumed_tokens_ended_is_reported_without_a_forward(
    make_engine: Callable[..., Engine], resumed: list[int], params: dict[str, Any], reason: str
) -> None:
    engine = make_engine()
    engine.add_request("done", "Hello", SamplingParams(**params), resumed)
    assert engine.has_unfinished()
    (output,) = engine.step()
    assert (output.finish_reason, output.token_ids, output.new_token_ids) == (reason, resumed, [])
    assert not engine.has_unfinished()
    assert engine.stats().num_steps == 0


def test_resumed_tokens_past_the_end_are_refused(make_engine: Callable[..., Engine]) -> None:
    with pytest.raises(RequestError, match="has 3 tokens, the request ends after 2"):
        make_engine().add_request("a", "Hello", SamplingParams(max_tokens=2), [1, 2, 3])


def test_output_ends_at_max_model_len(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(max_model_len=20)
    for max_tokens in (100, None):
        params = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True)
        (output,) = engine.generate(["x" * 15], params)
        assert (len(output.token_ids), output.finish_reason) == (5, "length")


def test_longest_prompt_gets_one_token_and_a_longer_one_is_refused(
    make_engine: Callable[..., Engine],
) -> None:
    engine = make_engine(num_blocks=5, max_model_len=20)
    assert len(engine.generate(["x" * 19], GREEDY)[0].token_ids) == 1
    with pytest.raises(RequestError, match="20 tokens, max_model_len is 20") as refused:
        engine.generate(["x" * 20], GREEDY)
    assert refused.value.code == "context_length_exceeded"


@pytest.mark.parametrize(
    ("prompt", "match"),
    [
        ("", "0 tokens"),
        ([], "0 tokens"),
        ([1, 264], r"prompt\[1\] is 264"),
        ([-1], r"prompt\[0\] is -1"),
        ([1, "a"], r"prompt\[1\] is str"),
        (7, "int"),
        (None, "NoneType"),
        (b"text", "bytes"),
    ],
)
def test_invalid_prompt_is_refused_before_anything_runs(
    make_engine: Callable[..., Engine], prompt: Any, match: str
) -> None:
    engine = make_engine()
    with pytest.raises(RequestError, match=match) as refused:
        engine.generate(["fine", prompt], GREEDY)
    assert refused.value.code == "invalid_request"
    assert not engine.has_unfinished()
    assert engine.stats().num_steps == 0


def test_other_arguments_that_cannot_work_are_refused(
    make_engine: Callable[..., Engine],
) -> None:
    engine = make_engine()
    with pytest.raises(RequestError, match="2 prompts and 1 params"):
        engine.generate(["a", "b"], [GREEDY])
    with pytest.raises(RequestError, match="prompts must be a list"):
        engine.generate("abc", GREEDY)
    with pytest.raises(RequestError, match="request_id must be a non-empty string"):
        engine.add_request("", "a", GREEDY)
    with pytest.raises(RequestError, match="params is a dict"):
        engine.add_request("a", "a", {"max_tokens": 3})  # type: ignore[arg-type]
    with pytest.raises(RequestError, match=r"stop_token_ids\[0\] is 264"):
        engine.add_request("a", "a", SamplingParams(stop_token_ids=[264]))
    with pytest.raises(RequestError, match=r"resumed_token_ids\[0\] is 999"):
        engine.add_request("a", "a", GREEDY, [999])
    engine.add_request("a", "a", GREEDY)
    with pytest.raises(RequestError, match="unfinished request"):
        engine.add_request("a", "b", GREEDY)
    with pytest.raises(EngineError, match="1 requests are unfinished"):
        engine.generate(["b"], GREEDY)


def test_refusal_does_not_repeat_the_prompt(make_engine: Callable[..., Engine]) -> None:
    with pytest.raises(RequestError) as refused:
        make_engine().generate(["secret" * 20], GREEDY)
    assert "secret" not in str(refused.value)


def test_aborted_request_reports_what_it_has_and_frees_its_blocks(
    make_engine: Callable[..., Engine], expected: list[list[int]]
) -> None:
    engine = make_engine(max_num_seqs=1)
    engine.add_request("runs", PROMPTS[1], GREEDY)
    engine.add_request("waits", PROMPTS[2], GREEDY)
    for _ in range(3):
        engine.step()
    assert engine.abort("runs")
    assert engine.abort("waits")
    assert not engine.abort("runs")
    assert not engine.abort("never was")
    assert engine.num_free_blocks == 64
    outputs = {output.request_id: output for output in engine.step()}
    assert outputs["runs"].finish_reason == outputs["waits"].finish_reason == "abort"
    assert outputs["runs"].token_ids == expected[1][:3]
    assert outputs["waits"].token_ids == []
    assert not engine.has_unfinished()


def test_request_joins_a_running_batch(
    make_engine: Callable[..., Engine], expected: list[list[int]]
) -> None:
    engine = make_engine()
    outputs = {}
    for index, prompt in enumerate(PROMPTS):
        engine.add_request(str(index), prompt, GREEDY)
        for output in engine.step():
            outputs[output.request_id] = output
    outputs |= {name: news[-1] for name, news in run(engine).items()}
    assert [outputs[str(index)].token_ids for index in range(4)] == expected


def test_stop_string_ends_the_request_early(
    make_engine: Callable[..., Engine], expected: list[list[int]]
) -> None:
    engine = make_engine()
    text = engine.tokenizer.decode(expected[1])
    stop = text[3:5]
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, stop=stop)
    (output,) = engine.generate([PROMPTS[1]], params)
    assert output.text == text[: text.index(stop)]
    assert (output.finish_reason, output.stop_reason) == ("stop", stop)
    assert len(output.token_ids) < 12


def test_nan_fails_its_own_request_and_no_other(
    make_engine: Callable[..., Engine], expected: list[list[int]]
) -> None:
    engine = make_engine(num_blocks=32)
    poisoned = [*engine.tokenizer.encode("x" * 20), POISON, 1, 2, 3]
    for index, prompt in enumerate(PROMPTS[:3]):
        engine.add_request(str(index), prompt, GREEDY)
    engine.add_request("poisoned", poisoned, GREEDY)
    outputs = {name: news[-1] for name, news in run(engine).items()}
    assert outputs["poisoned"].finish_reason == "error"
    assert outputs["poisoned"].error is not None
    assert outputs["poisoned"].error.code == "numerical_error"
    assert outputs["poisoned"].token_ids == []
    assert [outputs[str(index)].token_ids for index in range(3)] == expected[:3]
    # Its blocks are used again, and nothing of it is found in the prefix cache.
    assert [output.token_ids for output in engine.generate(PROMPTS, GREEDY)] == expected
    (longer,) = engine.generate(["x" * 20 + "y"], GREEDY)
    assert (longer.finish_reason, longer.usage.cached_tokens) == ("length", 20)


def test_failed_step_loses_nothing(
    make_engine: Callable[..., Engine], expected: list[list[int]], fuse: Fuse
) -> None:
    engine = make_engine(max_num_batched_tokens=16)
    for index, prompt in enumerate(PROMPTS):
        engine.add_request(str(index), prompt, GREEDY)
    outputs: dict[str, RequestOutput] = {}
    for step in range(100):
        fuse.is_blown = step % 3 == 1
        if fuse.is_blown and engine.has_unfinished():
            with pytest.raises(RuntimeError, match="the device is lost"):
                engine.step()
        else:
            outputs |= {output.request_id: output for output in engine.step()}
        engine._scheduler.check_invariants()
    assert [outputs[str(index)].token_ids for index in range(4)] == expected


def test_failed_generate_leaves_no_request_behind(
    make_engine: Callable[..., Engine], expected: list[list[int]], fuse: Fuse
) -> None:
    engine = make_engine()
    fuse.is_blown = True
    with pytest.raises(RuntimeError, match="the device is lost"):
        engine.generate(PROMPTS, GREEDY)
    fuse.is_blown = False
    assert not engine.has_unfinished()
    assert [output.token_ids for output in engine.generate(PROMPTS, GREEDY)] == expected


def test_prefix_cache_is_used_until_it_is_reset(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine()
    cached = [engine.generate(["x" * 40], GREEDY)[0].usage.cached_tokens for _ in range(2)]
    assert cached == [0, 36]
    assert engine.reset_prefix_cache() == engine.stats().num_cached_blocks + 12
    assert engine.generate(["x" * 40], GREEDY)[0].usage.cached_tokens == 0


def test_chat_is_rendered_by_the_models_template(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine()
    rendered = engine.render_chat([{"role": "user", "content": "hi"}])
    text = engine.tokenizer.decode(rendered, skip_special_tokens=False)
    assert text == "<a>user:hi<b>"


def test_stats_count_what_was_done(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine()
    engine.generate(["x" * 8, "y" * 8], GREEDY)
    stats = engine.stats()
    assert (stats.num_steps, stats.num_generated_tokens, stats.num_prompt_tokens) == (12, 24, 16)
    assert stats.num_computed_tokens == 16 + 2 * 11
    assert stats.num_finished == {"length": 2}
    assert stats.mean_batch_size == 2
    assert 0 < stats.step_time_p50_s <= stats.step_time_p99_s < 60
    assert (stats.num_running, stats.num_waiting, stats.num_free_blocks) == (0, 0, 64)


def test_limits_that_model_or_memory_cannot_support_are_refused(
    make_engine: Callable[..., Engine],
) -> None:
    with pytest.raises(ConfigError, match=r"max_model_len is 257, .* at most 256 tokens: set"):
        make_engine(max_model_len=257, num_blocks=100)
    with pytest.raises(ConfigError, match="max_model_len 64 tokens needs 16 blocks"):
        make_engine(num_blocks=15)
