"""Controls through the whole engine: resume, batches, preemption, samples, echo and truncation."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

import pytest

from batchmill.engine import Engine, RequestError, RequestOutput, SamplingParams

MakeEngine = Callable[..., Engine]
PROMPT = "The quick brown fox, the quick brown dog"
#: One set of params for each control, hot enough for it to matter.
CONTROLS: dict[str, dict[str, Any]] = {
    "none": {},
    "min_p": {"min_p": 0.2},
    "typical_p": {"typical_p": 0.5},
    "top_k": {"top_k": 5},
    "top_p": {"top_p": 0.6},
    "repetition_penalty": {"repetition_penalty": 1.8},
    "presence_penalty": {"presence_penalty": 2.0, "temperature": 0},
    "frequency_penalty": {"frequency_penalty": 1.5, "temperature": 0.3},
    "no_repeat_ngram_size": {"no_repeat_ngram_size": 2, "temperature": 0},
    "logit_bias": {"logit_bias": {97: 30, 98: 30.5}},
    "bad_words": {"bad_words": [[97], [98, 99], "qu"]},
    "allowed_token_ids": {"allowed_token_ids": list(range(64, 90))},
    "min_tokens": {"min_tokens": 10, "stop_token_ids": list(range(60, 120)), "ignore_eos": False},
    "json_object": {"response_format": {"type": "json_object"}, "ignore_eos": False},
    "regex": {"structured_outputs": {"regex": "[a-f]{4,30}"}, "ignore_eos": False},
    "logprobs": {"logprobs": 3, "entropy": True, "repetition_penalty": 1.3},
}


def params_of(name: str, **others: Any) -> SamplingParams:
    base = {"temperature": 1.5, "seed": 11, "max_tokens": 24, "ignore_eos": True}
    return SamplingParams(**{**base, **CONTROLS[name], **others})


def run(engine: Engine) -> dict[str, list[RequestOutput]]:
    """Step to the end; each request's outputs in order."""
    outputs: dict[str, list[RequestOutput]] = {}
    while engine.has_unfinished():
        for output in engine.step():
            outputs.setdefault(output.request_id, []).append(output)
    return outputs


@pytest.fixture
def alone(byte_engine: MakeEngine) -> dict[str, RequestOutput]:
    """Each set of params alone, in an engine that computes nothing else at the time."""
    engine = byte_engine(max_num_seqs=1, enable_prefix_caching=False)
    return {name: engine.generate([PROMPT], params_of(name))[0] for name in CONTROLS}


@pytest.mark.feature(
    "top_k", "top_p", "min_p", "typical_p", "repetition_penalty", "presence_penalty",
    "frequency_penalty", "no_repeat_ngram_size", "logit_bias", "bad_words", "allowed_token_ids",
    "min_tokens", "response_format", "structured_outputs", "logprobs", "entropy", "seed",
)  # fmt: skip
def test_tokens_depend_neither_on_the_batch_nor_on_preemption(
    byte_engine: MakeEngine, alone: dict[str, RequestOutput]
) -> None:
    roomy, tight = byte_engine(), byte_engine(kv_cache_bytes=70 * 1024, max_model_len=128)
    for engine in (roomy, tight):
        for name in CONTROLS:
            engine.add_request(name, PROMPT, params_of(name))
        outputs = run(engine)
        for name, expected in alone.items():
            last = outputs[name][-1]
            assert (last.token_ids, last.text) == (expected.token_ids, expected.text), name
            assert last.finish_reason == expected.finish_reason
            assert len(last.logprobs or ()) == len(expected.logprobs or ())
    assert roomy.stats().num_preemptions == 0
    assert tight.stats().num_preemptions > 0
    assert len({tuple(output.token_ids) for output in alone.values()}) >= len(CONTROLS) - 2


@pytest.mark.feature(
    "top_k", "top_p", "min_p", "typical_p", "repetition_penalty", "presence_penalty",
    "frequency_penalty", "no_repeat_ngram_size", "logit_bias", "bad_words", "allowed_token_ids",
    "min_tokens", "response_format", "structured_outputs", "logprobs", "entropy", "seed",
)  # fmt: skip
@pytest.mark.parametrize("name", CONTROLS)
def test_resumed_request_continues_as_it_would_have(byte_engine: MakeEngine, name: str) -> None:
    engine = byte_engine()
    (whole,) = engine.generate([PROMPT], params_of(name))
    cuts = random.Random(name).sample(range(len(whole.token_ids)), min(4, len(whole.token_ids)))
    for cut in (*cuts, len(whole.token_ids)):
        engine.add_request(f"cut {cut}", PROMPT, params_of(name), whole.token_ids[:cut])
    for outputs in run(engine).values():
        last = outputs[-1]
        assert (last.token_ids, last.text) == (whole.token_ids, whole.text)
        assert (last.finish_reason, last.stop_reason) == (whole.finish_reason, whole.stop_reason)
        new_token_ids = [token_id for output in outputs for token_id in output.new_token_ids]
        assert new_token_ids == whole.token_ids[len(whole.token_ids) - len(new_token_ids) :]
        assert last.text.endswith("".join(output.new_text for output in outputs))
        if whole.logprobs is not None and whole.entropies is not None:
            assert last.entropies == pytest.approx(whole.entropies, abs=1e-4)
            for mine, theirs in zip(last.logprobs or (), whole.logprobs, strict=True):
                assert mine == pytest.approx(theirs, abs=1e-4)


@pytest.mark.feature("bad_words")
def test_bad_words_do_not_occur_at_the_start_or_inside(byte_engine: MakeEngine) -> None:
    engine = byte_engine()
    favoured = {**{ord(c) - 33: 20 for c in "abc"}, 220: 20}  # Ġ is the byte model's space
    free = SamplingParams(seed=1, max_tokens=200, logit_bias=favoured, ignore_eos=True)
    bound = SamplingParams(
        seed=1, max_tokens=200, logit_bias=favoured, ignore_eos=True, bad_words=["ab", " c"]
    )
    texts = [engine.generate(["x"], params)[0].text for params in (free, bound)]
    assert "ab" in texts[0]
    assert "c" in texts[0]
    assert "ab" not in texts[1]
    assert " c" not in texts[1]


@pytest.mark.feature("bad_words", "allowed_token_ids")
def test_request_without_a_token_left_fails_by_itself_and_says_why(byte_engine: MakeEngine) -> None:
    engine = byte_engine()
    stuck = SamplingParams(allowed_token_ids=[5], bad_words=[[5, 5]])
    failed, fine = engine.generate(["a", "a"], [stuck, params_of("none")])
    assert (failed.finish_reason, failed.token_ids) == ("error", [5])
    assert failed.error is not None
    assert failed.error.code == "no_token_left"
    assert failed.error.message.startswith("allowed_token_ids and bad_words together forbid")
    assert fine.finish_reason == "length"


@pytest.mark.feature("n", "seed")
def test_samples_of_one_request_are_those_of_their_seeds(byte_engine: MakeEngine) -> None:
    engine = byte_engine()
    (three,) = engine.generate([PROMPT], params_of("none", n=3))
    (one,) = engine.generate([PROMPT], params_of("none"))
    (again,) = byte_engine(enable_prefix_caching=False).generate([PROMPT], params_of("none", n=3))
    assert [each.index for each in three.completions] == [0, 1, 2]
    assert [each.token_ids for each in three.completions] == [
        each.token_ids for each in again.completions
    ]
    assert three.token_ids == three.completions[0].token_ids == one.token_ids
    assert [each.token_ids for each in one.completions] == [one.token_ids]
    assert len({tuple(each.token_ids) for each in three.completions}) == 3
    assert three.usage.completion_tokens == 72
    assert (three.usage.prompt_tokens, three.finish_reason) == (len(PROMPT), "length")


@pytest.mark.feature("n")
def test_samples_share_the_prompts_blocks(byte_engine: MakeEngine) -> None:
    engine = byte_engine()
    engine.generate(["x" * 100], params_of("none", n=4, max_tokens=2))
    assert engine.stats().num_computed_tokens < 100 + 4 * 8


@pytest.mark.feature("n", "echo")
def test_new_tokens_of_a_request_with_samples_are_those_of_the_first(
    byte_engine: MakeEngine,
) -> None:
    engine = byte_engine()
    lengths = params_of("min_tokens", n=4, min_tokens=2, temperature=3.0, echo=True)
    engine.add_request("samples", PROMPT, lengths)
    with pytest.raises(RequestError, match="unfinished request"):
        engine.add_request("samples", PROMPT, lengths)
    outputs = run(engine)["samples"]
    last = outputs[-1]
    assert [each.finished for each in outputs] == [False] * (len(outputs) - 1) + [True]
    assert [t for output in outputs for t in output.new_token_ids] == last.token_ids
    assert "".join(output.new_text for output in outputs) == last.text
    assert all(each.text.startswith(PROMPT) for each in last.completions)
    assert len({len(each.token_ids) for each in last.completions}) > 1


@pytest.mark.feature("n")
def test_samples_are_resumed_each_with_its_own_tokens(byte_engine: MakeEngine) -> None:
    engine = byte_engine()
    params = params_of("none", n=3)
    (whole,) = engine.generate([PROMPT], params)
    resumed = [whole.completions[0].token_ids, whole.completions[1].token_ids[:5], []]
    engine.add_request("again", PROMPT, params, resumed)
    last = run(engine)["again"][-1]
    assert last.completions == whole.completions
    for wrong in ([1, 2, 3], [[1], [2]]):
        with pytest.raises(RequestError, match="list of 3 lists"):
            engine.add_request("wrong", PROMPT, params, wrong)


@pytest.mark.feature("n")
def test_abort_ends_all_samples_held_ones_too(byte_engine: MakeEngine) -> None:
    engine = byte_engine()
    engine.add_request("early", PROMPT, params_of("none", n=3))
    engine.add_request("late", PROMPT, params_of("none", n=3))
    assert engine.abort("early")
    for _ in range(4):
        engine.step()
    assert engine.abort("late")
    assert not engine.abort("late")
    outputs = run(engine)
    for each in outputs["late"][-1].completions:
        assert each.finish_reason == "abort"
        assert each.token_ids


@pytest.mark.feature("n")
def test_abort_after_the_first_sample_ended_is_an_abort(byte_engine: MakeEngine) -> None:
    engine = byte_engine()
    params = params_of("none", n=3)
    (whole,) = engine.generate([PROMPT], params)
    tokens = [each.token_ids for each in whole.completions]
    engine.add_request("samples", PROMPT, params, [tokens[0], tokens[1][:4], []])
    engine.step()
    engine.step()
    assert engine.abort("samples")
    last = run(engine)["samples"][-1]
    assert [each.finish_reason for each in last.completions] == ["length", "abort", "abort"]
    assert (last.finish_reason, last.token_ids) == ("abort", tokens[0])


def test_deadline_holds_after_the_first_sample_ended(byte_engine: MakeEngine) -> None:
    engine = byte_engine()
    params = params_of("none", n=2)
    (whole,) = engine.generate([PROMPT], params)
    tokens = [each.token_ids for each in whole.completions]
    engine.add_request("samples", PROMPT, params, [tokens[0], []], deadline_s=0.05)
    until = time.monotonic() + 0.1
    outputs = [output for _ in range(3) for output in engine.step()]
    while time.monotonic() <= until:
        pass
    last = (outputs + run(engine)["samples"])[-1]
    assert [each.finish_reason for each in last.completions] == ["length", "abort"]
    assert last.completions[1].token_ids == tokens[1][: len(last.completions[1].token_ids)]
    assert last.finish_reason == "abort"
    assert last.error is not None
    assert last.error.code == "deadline_exceeded"


@pytest.mark.feature("n")
def test_failed_generate_leaves_no_sample_behind(byte_engine: MakeEngine) -> None:
    engine = byte_engine()
    with pytest.raises(RequestError, match="token ids are integers"):
        engine.generate([PROMPT, [999]], params_of("none", n=2))
    assert not engine.has_unfinished()


@pytest.mark.feature("echo", "skip_special_tokens")
def test_echo_begins_the_text_with_the_prompt(byte_engine: MakeEngine) -> None:
    engine = byte_engine()
    plain = engine.generate([PROMPT, [256, 40]], params_of("none"))
    stop = plain[0].text[4:6]
    outputs = engine.generate(
        [PROMPT, [256, 40], [256, 40], PROMPT],
        [
            params_of("none", echo=True),
            params_of("none", echo=True),
            params_of("none", echo=True, skip_special_tokens=False),
            params_of("none", echo=True, stop=["quick", stop]),
        ],
    )
    assert outputs[0].text == PROMPT + plain[0].text
    assert outputs[1].text == engine.tokenizer.decode([40]) + plain[1].text
    assert outputs[2].text.startswith("<eos>")
    # Stop strings are looked for in the output alone.
    assert outputs[3].text == PROMPT + plain[0].text[: plain[0].text.index(stop)]
    assert outputs[0].token_ids == plain[0].token_ids


@pytest.mark.feature("truncate_prompt_tokens")
def test_truncation_keeps_the_prompts_last_tokens(byte_engine: MakeEngine) -> None:
    engine = byte_engine(max_model_len=64)
    expected = engine.generate(["x" * 9 + "y"], params_of("none"))[0]
    cut = params_of("none", truncate_prompt_tokens=10)
    (output,) = engine.generate(["z" * 200 + "x" * 9 + "y"], cut)
    assert (output.token_ids, output.usage.prompt_tokens) == (expected.token_ids, 10)
    fitting = params_of("none", truncate_prompt_tokens=-1, max_tokens=20, echo=True)
    (output,) = engine.generate(["a" * 30 + "b" * 100], fitting)
    assert (output.usage.prompt_tokens, len(output.token_ids)) == (44, 20)
    assert output.text.startswith("b" * 44)
    with pytest.raises(RequestError, match="truncate_prompt_tokens"):
        engine.generate(["x" * 64], params_of("none"))


def test_token_ids_outside_the_vocabulary_are_refused(byte_engine: MakeEngine) -> None:
    engine = byte_engine()
    values: dict[str, Any] = {
        "allowed_token_ids": [264],
        "logit_bias": {264: 1},
        "bad_words": [[1, 264]],
        "stop_token_ids": [264],
    }
    for name, value in values.items():
        with pytest.raises(RequestError, match=rf"{name}\[\d\] is 264"):
            engine.generate(["a"], SamplingParams(**{name: value}))


def test_samples_that_had_ended_are_reported_beside_one_that_ends_with_its_first_token(
    byte_engine: MakeEngine,
) -> None:
    engine = byte_engine()
    params = SamplingParams(n=3, max_tokens=5, seed=3, ignore_eos=True)
    (whole,) = engine.generate([[5, 6, 7]], params)
    done = [each.token_ids for each in whole.completions]
    engine.add_request("again", [5, 6, 7], params, [done[0][:4], *done[1:]])
    outputs = []
    while engine.has_unfinished():
        outputs += engine.step()
    assert [each.token_ids for each in outputs[-1].completions] == done
    assert [each.finished for each in outputs].count(True) == 1
