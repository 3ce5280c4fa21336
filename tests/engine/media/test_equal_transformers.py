"""Pictures and sounds give the tokens of transformers, however the engine computes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch

from batchmill.engine import Chat, Engine, EngineConfig, RequestOutput, SamplingParams
from batchmill.engine.contract.media import Media
from batchmill.engine.loading.loading import LoadedModel, load_model

from ...support.tiny_media_models import SAVERS, TinyMediaModel

NUM_TOKENS = 12
GREEDY = SamplingParams(max_tokens=NUM_TOKENS, temperature=0.0, ignore_eos=True)
SCORED = replace(GREEDY, logprobs=3)


class Question(NamedTuple):
    """A chat with media, and what transformers makes of it."""

    chat: Chat
    media: Sequence[Media]
    prompt_token_ids: list[int]
    token_ids: list[int]
    #: [NUM_TOKENS, vocab_size] of log probabilities.
    logprobs: torch.Tensor


class Family(NamedTuple):
    """A family's tiny model, loaded by both, and questions about one, several and no media."""

    folder: str
    loaded: LoadedModel
    questions: dict[str, Question]


def messages_of(*contents: str | Media) -> tuple[list[dict[str, Any]], list[Media]]:
    """Return messages of one user whose content has these texts and media, in this order."""
    parts = [
        {"type": "text", "text": each} if isinstance(each, str) else {"type": each.kind}
        for each in contents
    ]
    return [{"role": "user", "content": parts}], [e for e in contents if not isinstance(e, str)]


def ask(model: TinyMediaModel, *contents: str | Media) -> Question:
    """Let transformers answer a question."""
    messages, media = messages_of(*contents)
    text = "".join(each if isinstance(each, str) else model.written for each in contents)
    inputs = model.process(f"user:{text};assistant:", media)
    generate: Any = model.hf_model.generate
    with torch.inference_mode():
        found = generate(
            **inputs,
            do_sample=False,
            max_new_tokens=NUM_TOKENS,
            min_new_tokens=NUM_TOKENS,
            eos_token_id=-1,
            pad_token_id=0,
            output_logits=True,
            return_dict_in_generate=True,
        )
    prompt = inputs["input_ids"][0].tolist()
    logprobs = torch.cat(found.logits).float().log_softmax(-1)
    return Question(
        Chat(messages=messages), media, prompt, found.sequences[0, len(prompt) :].tolist(), logprobs
    )


@pytest.fixture(scope="module", params=list(SAVERS))
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    folder = tmp_path_factory.mktemp(request.param)
    model = SAVERS[request.param](folder)
    first, second, large = model.make(1, 0), model.make(2, 0), model.make(3, 2)
    questions = {
        "one": ask(model, first, "What is it?"),
        "other": ask(model, second, "What is it?"),
        "after text": ask(model, "Look: ", large, " well?"),
        "several": ask(model, "From ", first, " to ", second, first, "?"),
        "none": ask(model, "Nothing to see or hear."),
    }
    loaded = load_model(str(folder), dtype="float32", device="cpu")
    return Family(str(folder), loaded, questions)


def engine_of(family: Family, **settings: Any) -> Engine:
    defaults: dict[str, Any] = {
        "model": "tiny",
        "dtype": "float32",
        "device": "cpu",
        "max_model_len": 512,
        "max_num_seqs": 8,
        "block_size": 4,
        "kv_cache_bytes": 8 << 20,
    }
    return Engine(EngineConfig(**{**defaults, **settings}), loaded=family.loaded)


def run(
    engine: Engine, questions: dict[str, Question], params: SamplingParams = GREEDY
) -> dict[str, RequestOutput]:
    """Answer all questions in one batch, and return their last outputs."""
    for name, each in questions.items():
        engine.add_request(name, each.chat, params, media=each.media)
    finished: dict[str, RequestOutput] = {}
    while engine.has_unfinished():
        finished |= {output.request_id: output for output in engine.step() if output.finished}
        engine._scheduler.check_invariants()
    assert engine.num_free_blocks == engine.stats().num_blocks
    return finished


def check(outputs: dict[str, RequestOutput], questions: dict[str, Question]) -> None:
    """Compare outputs with those of transformers."""
    for name, question in questions.items():
        output = outputs[name]
        assert output.prompt_token_ids == question.prompt_token_ids, name
        assert output.token_ids == question.token_ids, name
        for step, logprobs in enumerate(output.logprobs or ()):
            for token_id, logprob in logprobs.items():
                assert logprob == pytest.approx(float(question.logprobs[step, token_id]), abs=2e-4)


def test_each_alone(family: Family) -> None:
    for name, question in family.questions.items():
        check(run(engine_of(family), {name: question}, SCORED), {name: question})
    assert family.questions["one"].token_ids != family.questions["other"].token_ids


@pytest.mark.parametrize(
    ("settings", "params"),
    [
        pytest.param({}, SCORED, id="together"),
        pytest.param({"max_num_batched_tokens": 9}, SCORED, id="chunked inside media"),
        pytest.param({"overlap": True}, GREEDY, id="overlapping steps"),
        pytest.param({"decode_graphs": True}, GREEDY, id="decode graphs"),
        pytest.param({"num_speculative_tokens": 3}, GREEDY, id="prompt lookup"),
        pytest.param({"media_cache_bytes": 0}, GREEDY, id="no features kept"),
    ],
)
def test_all_together(family: Family, settings: dict[str, Any], params: SamplingParams) -> None:
    check(run(engine_of(family, **settings), family.questions, params), family.questions)


def test_again_from_the_prefix_cache(family: Family) -> None:
    engine = engine_of(family)
    run(engine, family.questions)
    num_encoded = engine.stats().num_encoded_media
    outputs = run(engine, family.questions, GREEDY)
    check(outputs, family.questions)
    assert all(output.num_cached_tokens > 0 for output in outputs.values())
    assert engine.stats().num_encoded_media == num_encoded == 3


def test_preempted_requests_are_computed_again(family: Family) -> None:
    longest = max(len(each.prompt_token_ids) for each in family.questions.values()) + NUM_TOKENS
    num_blocks = -(-longest // 4) + 12
    block_bytes = 2 * 3 * 4 * 2 * 8 * 4  # k+v, layers, tokens, kv heads, dim, float32
    urgent = {"none": family.questions["none"]}
    slow = {name: each for name, each in family.questions.items() if name not in urgent}
    engine = engine_of(family, kv_cache_bytes=num_blocks * block_bytes, max_model_len=longest)
    for name, each in slow.items():
        engine.add_request(name, each.chat, GREEDY, media=each.media, priority=2)
    outputs: dict[str, RequestOutput] = {}
    while engine.has_unfinished():
        if engine.num_steps == 3 and "none" in urgent:
            engine.add_request("none", urgent.pop("none").chat, GREEDY, priority=0)
        outputs |= {each.request_id: each for each in engine.step() if each.finished}
        engine._scheduler.check_invariants()
    check(outputs, family.questions)
    assert engine.num_preemptions > 0


def test_resumed_requests_continue_as_if_never_stopped(family: Family) -> None:
    engine = engine_of(family, max_num_batched_tokens=13)
    for num_known, (name, each) in enumerate(family.questions.items(), start=1):
        known = each.token_ids[: 2 * num_known]
        engine.add_request(name, each.chat, GREEDY, known, media=each.media)
    check(run(engine, {}), family.questions)


def test_fifty_questions_about_one_picture_compute_it_once(family: Family) -> None:
    first = family.questions["one"]
    engine = engine_of(family, max_num_seqs=16)
    num_alone = len(first.prompt_token_ids)
    num_shared = (num_alone - len("What is it?;assistant:")) // 4 * 4
    run(engine, {"first": first}, replace(GREEDY, max_tokens=1))
    start = engine.stats().num_computed_tokens
    for number in range(50):
        contents = [{"type": first.media[0].kind}, {"type": "text", "text": f"Question {number}"}]
        chat = Chat(messages=[{"role": "user", "content": contents}])
        engine.add_request(f"{number}", chat, replace(GREEDY, max_tokens=1), media=first.media)
    outputs = run(engine, {})
    stats = engine.stats()
    assert stats.num_encoded_media == 1
    assert all(output.num_cached_tokens >= num_shared for output in outputs.values())
    assert stats.num_computed_tokens - start < 50 * (num_alone - num_shared + 4)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"dtype": "bfloat16"}, id="bfloat16"),
        pytest.param({"dtype": "float32", "quantization": "int8"}, id="int8"),
    ],
)
def test_other_number_formats_see_the_media_too(family: Family, settings: dict[str, Any]) -> None:
    loaded = load_model(family.folder, device="cpu", **settings)
    engine = engine_of(family._replace(loaded=loaded), **settings, max_num_batched_tokens=16)
    outputs = run(engine, {name: family.questions[name] for name in ("one", "other")})
    assert all(output.error is None for output in outputs.values())
    assert outputs["one"].token_ids != outputs["other"].token_ids
