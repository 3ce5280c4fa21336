"""Thoughts end where their budget does: in any batch, after preemption and after a crash."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from batchmill.engine import Chat, Engine, EngineConfig, RequestError, RequestOutput, SamplingParams

from ..support.chat_model import save_chat_model

CHAT = Chat(messages=[{"role": "user", "content": "Where does the mill stand?"}])
END = "</think>"
BEGUN = (
    "{% for m in messages %}{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<think>' if enable_thinking | default(true) }}{% endif %}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("begun")
    save_chat_model(folder, BEGUN)
    return folder


def engine_of(folder: Path, **options: Any) -> Engine:
    config: dict[str, Any] = {"max_model_len": 256, "kv_cache_bytes": 1 << 20, **options}
    return Engine(EngineConfig(model=str(folder), device="cpu", dtype="float32", **config))


def params_of(**others: Any) -> SamplingParams:
    base = {"temperature": 1.5, "seed": 5, "max_tokens": 32, "ignore_eos": True}
    return SamplingParams(**{**base, **others})


def run(engine: Engine) -> dict[str, RequestOutput]:
    last: dict[str, RequestOutput] = {}
    while engine.has_unfinished():
        last |= {output.request_id: output for output in engine.step()}
    return last


def end_of(engine: Engine) -> list[int]:
    return engine.tokenizer.encode_plain(END)


@pytest.mark.feature("thinking_token_budget")
@pytest.mark.parametrize("budget", [0, 5])
def test_a_thought_is_ended_after_its_budget_and_the_answer_follows(
    folder: Path, budget: int
) -> None:
    engine = engine_of(folder)
    (free,) = engine.generate([CHAT], params_of())
    (bound,) = engine.generate([CHAT], params_of(thinking_token_budget=budget))
    end = end_of(engine)
    assert (free.text, free.num_reasoning_tokens) == ("", 32)
    assert bound.token_ids[: budget + len(end)] == free.token_ids[:budget] + end
    assert bound.usage.reasoning_tokens == budget + len(end)
    assert bound.usage.completion_tokens == 32
    answer = engine.tokenizer.decode(bound.token_ids[budget + len(end) :])
    assert bound.text.strip() == answer.strip() != ""
    assert END not in bound.text + bound.reasoning


@pytest.mark.feature("thinking_token_budget")
def test_a_budget_depends_neither_on_the_batch_nor_on_preemption_overlap_or_resumption(
    folder: Path,
) -> None:
    budgets = range(12)
    alone = engine_of(folder, max_num_seqs=1)
    whole = {
        str(each): alone.generate([CHAT], params_of(thinking_token_budget=each))[0]
        for each in budgets
    }
    tight = {"kv_cache_bytes": 70 * 1024, "max_model_len": 128}
    for options in ({"overlap": True}, {"overlap": False, **tight}):
        engine = engine_of(folder, **options)
        for each in budgets:
            engine.add_request(str(each), CHAT, params_of(thinking_token_budget=each))
        for name, output in run(engine).items():
            assert output.token_ids == whole[name].token_ids
            assert output.usage.reasoning_tokens == whole[name].usage.reasoning_tokens
    assert engine.stats().num_preemptions > 0
    # Before, in and after the tokens that are forced.
    for cut in (0, 3, 5, 8, 12, 13, 20):
        saved = whole["5"].token_ids[:cut]
        alone.add_request(str(cut), CHAT, params_of(thinking_token_budget=5), saved)
    for output in run(alone).values():
        assert output.token_ids == whole["5"].token_ids
        assert output.text == whole["5"].text


@pytest.mark.feature("thinking_token_budget")
def test_no_other_control_keeps_a_thought_from_its_end(folder: Path) -> None:
    engine = engine_of(folder, reasoning_parser="none")
    params = params_of(
        thinking_token_budget=2, allowed_token_ids=[64, 65], bad_words=[[30]], min_p=0.5
    )
    (output,) = engine.generate([CHAT], params)
    # The operator leaves thoughts in the text.
    assert output.text[2:].startswith(END)
    assert set(output.token_ids) - set(end_of(engine)) <= {64, 65}


@pytest.mark.feature("thinking_token_budget")
@pytest.mark.parametrize(
    "others",
    [
        # What may be the beginning of a stop string is held back, here the end of the thought.
        {"stop": [">>>", "</thinner", "<think"]},
        {"min_tokens": 30, "ignore_eos": False},
        {"logprobs": 2, "entropy": True},
        {"guidance_scale": 2.0, "negative_prompt": "no"},
        {"n": 2},
    ],
    ids=lambda others: next(iter(others)),
)
def test_a_budget_is_exact_beside_other_controls(folder: Path, others: dict[str, Any]) -> None:
    engine = engine_of(folder, num_speculative_tokens=2)
    end = end_of(engine)
    (output,) = engine.generate([CHAT], params_of(thinking_token_budget=5, **others))
    for each in output.completions:
        assert each.token_ids[5 : 5 + len(end)] == end
        answer = engine.tokenizer.decode(each.token_ids[5 + len(end) :])
        assert answer.strip().startswith(each.text.strip())
        assert each.text
        assert END not in each.text + each.reasoning


@pytest.mark.feature("thinking_token_budget")
def test_thoughts_that_the_model_begins_share_one_budget(folder: Path) -> None:
    engine = engine_of(folder)
    chat = Chat(messages=CHAT.messages, chat_template_kwargs={"enable_thinking": False})
    text = "a<think>bc</think>d<think>ef"
    saved = engine.tokenizer.encode_plain(text)
    # Until it is complete, the end that the model writes is a part of the thought.
    budget = len("bc</thinkef")
    params = params_of(thinking_token_budget=budget, max_tokens=40)
    engine.add_request("r", chat, params, saved)
    output = run(engine)["r"]
    assert output.token_ids[len(saved) : len(saved) + len(END)] == end_of(engine)
    assert output.reasoning == "bc\n\nef"


def test_a_budget_is_refused_where_nothing_is_a_thought(folder: Path, tmp_path: Path) -> None:
    engine = engine_of(folder)
    params = params_of(thinking_token_budget=4)
    with pytest.raises(RequestError, match="needs a chat"):
        engine.generate(["a prompt"], params)
    structured = SamplingParams(thinking_token_budget=4, structured_outputs={"regex": "a"})
    with pytest.raises(RequestError, match="structured output"):
        engine.generate([CHAT], structured)
    save_chat_model(tmp_path, "{% for m in messages %}{{ m.content }}{% endfor %}")
    plain = engine_of(tmp_path)
    for chat, given in (
        (CHAT, params),
        (Chat(messages=CHAT.messages, reasoning_effort="low"), params_of()),
    ):
        with pytest.raises(RequestError, match="markup of thoughts") as refused:
            plain.generate([chat], given)
        assert refused.value.code == "unsupported_parameter"
    none = Chat(messages=CHAT.messages, reasoning_effort="none")
    assert plain.generate([none], params_of())[0].text


def test_an_effort_is_a_switch_of_the_template_and_a_budget(folder: Path) -> None:
    engine = engine_of(folder)
    prompt = engine.render_chat(CHAT)
    tokens = {}
    for effort in ("none", "minimal", "high"):
        chat = Chat(messages=CHAT.messages, reasoning_effort=effort)
        tokens[effort] = engine.render_chat(chat)
    assert tokens["high"] == tokens["minimal"] == prompt == tokens["none"] + prompt[-7:]
    minimal = Chat(messages=CHAT.messages, reasoning_effort="minimal")
    (output,) = engine.generate([minimal], params_of(max_tokens=160))
    assert output.usage.reasoning_tokens == 128 + len(END)
    (output,) = engine.generate([minimal], params_of(max_tokens=160, thinking_token_budget=9))
    assert output.usage.reasoning_tokens == 9 + len(END)


def test_a_template_that_takes_efforts_gets_them_as_they_are(tmp_path: Path) -> None:
    template = "{{ messages[0].content }}{{ reasoning_effort or 'unset' }}<think>"
    save_chat_model(tmp_path, template)
    engine = engine_of(tmp_path)
    chat = Chat(messages=[{"role": "user", "content": "q"}], reasoning_effort="minimal")
    assert engine.tokenizer.decode(engine.render_chat(chat)) == "qminimal<think>"
    # How long it thinks is up to the model then.
    (output,) = engine.generate([chat], params_of(max_tokens=150))
    assert output.usage.reasoning_tokens == 150


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"reasoning_effort": "much"}, "one of none, minimal, low"),
        (
            {"reasoning_effort": "low", "chat_template_kwargs": {"enable_thinking": True}},
            "both given",
        ),
    ],
)
def test_an_effort_that_cannot_be_followed_is_refused(given: dict[str, Any], match: str) -> None:
    with pytest.raises(RequestError, match=match):
        Chat(messages=CHAT.messages, **given)


def test_thoughts_are_reported_as_they_become_certain(folder: Path) -> None:
    engine = engine_of(folder)
    saved = engine.tokenizer.encode_plain(" Hm, ")
    engine.add_request("r", CHAT, params_of(thinking_token_budget=9), saved)
    outputs = []
    while engine.has_unfinished():
        outputs += engine.step()
    last = outputs[-1]
    new = [output.new_reasoning for output in outputs]
    # What was reported before the resumption is not new.
    assert "Hm," + "".join(new) == last.reasoning
    assert len([text for text in new if text]) > 1
    assert "".join(output.new_text for output in outputs) == last.text
