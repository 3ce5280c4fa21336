"""Conversations in the engine: templates that must not ignore anything, calls, continuation."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from transformers import PreTrainedTokenizerFast

from batchmill.engine import Chat, Engine, EngineConfig, FinishReason, RequestError, SamplingParams
from batchmill.engine.loading.loading import LoadedModel
from batchmill.engine.text.chat_template import render_chat
from batchmill.engine.text.tokenizer import Tokenizer

from ...support.chat_templates import (
    ALL,
    CLOCK,
    HERMES,
    PLAIN,
    SPECIAL_TOKENS,
    TOOLS,
    WEATHER,
    named,
)

MakeChatEngine = Callable[..., Engine]
QUESTION: dict[str, Any] = {"role": "user", "content": "How is the weather?"}
CALL: dict[str, Any] = {
    "id": "abcdefghi",
    "type": "function",
    "function": {"name": "get_weather", "arguments": '{"city": "Bern", "days": 1}'},
}
ANSWERED: list[dict[str, Any]] = [
    QUESTION,
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "tool", "tool_call_id": "abcdefghi", "content": "Sunny."},
]


def hf_tokenizer(loaded: LoadedModel, template: str) -> PreTrainedTokenizerFast:
    """The byte model's tokenizer with a template and its special tokens."""
    copied = type(loaded.tokenizer.backend).from_str(loaded.tokenizer.backend.to_str())
    copied.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=copied, eos_token="<eos>")
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture
def chat_engine(byte_model: LoadedModel) -> MakeChatEngine:
    """Makes engines whose model has a chat template."""

    def make(template: str, **settings: Any) -> Engine:
        tokenizer = Tokenizer(hf_tokenizer(byte_model, template))
        config = EngineConfig(
            model="/models/tiny",
            dtype="float32",
            device="cpu",
            max_model_len=1024,
            max_num_seqs=8,
            kv_cache_bytes=8 << 20,
            **settings,
        )
        return Engine(config, loaded=replace(byte_model, tokenizer=tokenizer))

    return make


def rendered(loaded: LoadedModel, template: str, **chat: Any) -> str:
    return render_chat(hf_tokenizer(loaded, template), Chat(**chat), "tiny")


@pytest.mark.parametrize("name", ALL)
def test_tools_and_calls_are_in_the_prompt(byte_model: LoadedModel, name: str) -> None:
    messages = ANSWERED if name != "mistral" else [*ANSWERED, QUESTION]
    prompt = rendered(byte_model, ALL[name], messages=messages, tools=TOOLS)
    assert "The weather of a city." in prompt
    assert '{"city": "Bern", "days": 1}' in prompt  # an object, no quoted text
    assert "Sunny." in prompt
    assert "None" not in prompt


@pytest.mark.parametrize(
    ("chat", "ignored"),
    [
        ({"messages": [QUESTION], "tools": TOOLS}, "tools"),
        ({"messages": [QUESTION], "documents": [{"title": "a", "text": "b"}]}, "documents"),
        (
            {"messages": [QUESTION, {**ANSWERED[1], "content": "So:"}, QUESTION]},
            "tool_calls of messages",
        ),
        ({"messages": [{**QUESTION, "name": "Anna"}]}, "names of messages"),
    ],
)
def test_a_template_that_ignores_a_part_is_an_error_with_the_models_name(
    chat_engine: MakeChatEngine, chat: dict[str, Any], ignored: str
) -> None:
    engine = chat_engine(PLAIN)
    with pytest.raises(RequestError) as caught:
        engine.add_request("chat", Chat(**chat))
    assert caught.value.code == "unsupported_parameter"
    assert caught.value.message.startswith(f"the chat template of tiny ignores {ignored}: ")
    assert not engine.has_unfinished()


def test_a_template_that_skips_the_role_tool_is_an_error(byte_model: LoadedModel) -> None:
    template = (
        "{% for m in messages %}{% if m.role != 'tool' %}{{ m.content }}{{ m.tool_calls }}"
        "{% endif %}{% endfor %}"
    )
    with pytest.raises(RequestError, match="ignores messages of role tool"):
        rendered(byte_model, template, messages=ANSWERED)


def test_tools_that_must_not_be_used_are_not_shown(byte_model: LoadedModel) -> None:
    chat = {"messages": [QUESTION]}
    hidden = rendered(byte_model, HERMES, **chat, tools=TOOLS, tool_choice="none")
    assert hidden == rendered(byte_model, HERMES, **chat)
    assert rendered(byte_model, PLAIN, **chat, tools=TOOLS, tool_choice="none")


def test_documents_and_the_templates_own_switches_reach_the_template(
    byte_model: LoadedModel,
) -> None:
    documents = [{"title": "Mills", "text": "They grind."}]
    chat: dict[str, Any] = {"messages": [QUESTION]}
    assert "[Mills] They grind." in rendered(byte_model, HERMES, **chat, documents=documents)
    switched = rendered(byte_model, HERMES, **chat, chat_template_kwargs={"enable_thinking": False})
    assert switched.endswith("<no_think>")
    # Its default changes nothing, and is accepted because the template knows the name.
    switched = rendered(byte_model, HERMES, **chat, chat_template_kwargs={"enable_thinking": True})
    assert switched == rendered(byte_model, HERMES, **chat)
    open_ended = rendered(byte_model, HERMES, **chat, add_generation_prompt=False)
    assert open_ended.endswith("How is the weather?<|im_end|>\n")


@pytest.mark.parametrize(
    ("kwargs", "code"),
    [
        ({"enable_thought": True}, "unsupported_parameter"),
        ({"messages": "x"}, "invalid_request"),
        ({"tokenize": True}, "invalid_request"),
        ({"chat_template": "x"}, "invalid_request"),
        ({"eos_token": "x"}, "invalid_request"),
        ({"enable_thinking": ["x"]}, "invalid_request"),
    ],
)
def test_switches_that_the_template_does_not_know_are_refused(
    byte_model: LoadedModel, kwargs: dict[str, Any], code: str
) -> None:
    with pytest.raises(RequestError) as caught:
        rendered(byte_model, HERMES, messages=[QUESTION], chat_template_kwargs=kwargs)
    assert caught.value.code == code


def test_content_in_parts_and_the_developers_role_are_understood(byte_model: LoadedModel) -> None:
    parts = [{"type": "text", "text": "Be"}, {"type": "text", "text": "brief."}]
    messages = [{"role": "developer", "content": parts}, QUESTION]
    assert "<system>Be\nbrief.</>" in rendered(byte_model, PLAIN, messages=messages)
    with pytest.raises(RequestError, match="'image_url': use parts") as caught:
        Chat(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}])
    assert caught.value.code == "unsupported_parameter"


def test_the_last_message_is_continued_without_its_end(chat_engine: MakeChatEngine) -> None:
    engine = chat_engine(HERMES)
    begun = [QUESTION, {"role": "assistant", "content": "It is"}]
    prompt = engine.render_chat(Chat(messages=begun, continue_final_message=True))
    text = engine.tokenizer.decode(prompt, skip_special_tokens=False)
    assert text.endswith("<|im_start|>assistant\nIt is")
    answered = engine.tokenizer.decode(engine.render_chat(begun), skip_special_tokens=False)
    assert answered.endswith("It is<|im_end|>\n<|im_start|>assistant\n")


def test_a_long_message_in_segments_equals_the_message_in_one(chat_engine: MakeChatEngine) -> None:
    engine = chat_engine(HERMES)
    letters = engine.tokenizer.encode_plain("abcdefghijklmnopqrstuvwxyz")
    params = SamplingParams(max_tokens=24, temperature=0, allowed_token_ids=letters)
    (whole,) = engine.generate([Chat(messages=[QUESTION])], params)
    text = ""
    for _ in range(3):
        begun = [QUESTION, {"role": "assistant", "content": text}] if text else [QUESTION]
        segment = Chat(messages=begun, continue_final_message=bool(text))
        (output,) = engine.generate([segment], replace(params, max_tokens=8))
        text += output.text
    assert text == whole.text


@pytest.mark.parametrize(
    "chat",
    [
        {"messages": []},
        {"messages": "Hello"},
        {"messages": [{"role": "robot", "content": "x"}]},
        {"messages": [{"role": "user"}]},
        {"messages": [QUESTION], "continue_final_message": True},
        {"messages": ANSWERED[:2], "continue_final_message": True},
        {
            "messages": [QUESTION, {"role": "assistant", "content": "x"}],
            "continue_final_message": True,
            "add_generation_prompt": True,
        },
        {"messages": [QUESTION], "tools": [{"type": "function"}]},
        {"messages": [QUESTION], "tools": [CLOCK, CLOCK]},
        {"messages": [QUESTION], "tool_choice": "auto"},
        {"messages": [QUESTION], "tools": TOOLS, "tool_choice": named("other")},
        {"messages": [QUESTION], "tools": TOOLS, "tool_choice": "always"},
        {"messages": [{"role": "assistant", "tool_calls": [{"id": "x"}]}]},
        {"messages": [QUESTION], "documents": ["text"]},
    ],
)
def test_a_conversation_that_cannot_work_is_refused(chat: dict[str, Any]) -> None:
    with pytest.raises(RequestError) as caught:
        Chat(**chat)
    assert caught.value.code == "invalid_request"


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param('{"a":' * 900 + "1" + "}" * 900, id="deep"),
        pytest.param('{"city": "\\ud800"}', id="lone surrogate"),
    ],
)
def test_arguments_that_python_reads_and_no_template_writes_are_refused(
    chat_engine: MakeChatEngine, name: str, arguments: str
) -> None:
    call = {**CALL, "function": {"name": "get_weather", "arguments": arguments}}
    turns = [QUESTION, {"role": "assistant", "content": None, "tool_calls": [call]}, ANSWERED[2]]
    engine = chat_engine(ALL[name])
    with pytest.raises(RequestError) as caught:
        engine.add_request("request", Chat(messages=turns))
    assert caught.value.code in ("invalid_request", "unsupported_parameter")
    assert not engine.has_unfinished()


def test_the_format_of_calls_can_be_set_if_the_template_does_not_show_it(
    chat_engine: MakeChatEngine,
) -> None:
    template = "{{ tools }}" + PLAIN
    chat = Chat(messages=[QUESTION], tools=[CLOCK], tool_choice="required")
    with pytest.raises(RequestError, match="set tool_call_parser to hermes") as caught:
        chat_engine(template).generate([chat])
    assert caught.value.code == "unsupported_parameter"
    engine = chat_engine(template, tool_call_parser="hermes")
    (output,) = engine.generate([chat], SamplingParams(max_tokens=200))
    assert {call.name for call in output.tool_calls} == {"clock"}


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("seed", range(3))
def test_demanded_calls_follow_their_schema_at_any_temperature(
    chat_engine: MakeChatEngine, name: str, seed: int
) -> None:
    engine = chat_engine(ALL[name])
    params = SamplingParams(max_tokens=200, temperature=2.0, seed=seed, logit_bias={256: 5.0})
    chats = [
        Chat(messages=[QUESTION], tools=TOOLS, tool_choice=choice)
        for choice in ("required", named("get_weather"), named("clock"))
    ]
    outputs = engine.generate(chats, params)
    for output in outputs:
        assert output.finish_reason is FinishReason.TOOL_CALLS
        assert output.text == ""
        for call in output.tool_calls:
            schema = {"get_weather": WEATHER["function"]["parameters"]}.get(call.name, {})
            Draft202012Validator(schema).validate(json.loads(call.arguments))
    assert [len(output.tool_calls) for output in outputs[1:]] == [1, 1]
    assert [output.tool_calls[0].name for output in outputs[1:]] == ["get_weather", "clock"]
    marker = {"mistral": "[TOOL_CALLS]", "mistral with [ARGS]": "[ARGS]"}.get(name)
    if marker is not None:  # in one piece, as the model has learnt it
        assert engine.tokenizer.backend.token_to_id(marker) in outputs[1].token_ids


def test_calls_of_every_sample_are_its_own_and_a_resumed_one_makes_the_same(
    chat_engine: MakeChatEngine,
) -> None:
    engine = chat_engine(HERMES)
    chat = Chat(messages=[QUESTION], tools=[WEATHER], tool_choice="required")
    params = SamplingParams(n=2, max_tokens=200, seed=1, logit_bias={256: 9.0})
    (output,) = engine.generate([chat], params)
    first, second = output.completions
    assert first.tool_calls == output.tool_calls
    assert {call.id for call in first.tool_calls}.isdisjoint(call.id for call in second.tool_calls)
    cut = [first.token_ids[:20], second.token_ids[:30]]
    engine.add_request("again", chat, params, cut)
    last = None
    while engine.has_unfinished():
        last = engine.step()[-1]
    assert last is not None
    assert [each.tool_calls for each in last.completions] == [first.tool_calls, second.tool_calls]


def test_an_output_without_calls_is_text(chat_engine: MakeChatEngine) -> None:
    engine = chat_engine(HERMES)
    params = SamplingParams(max_tokens=12, temperature=0, ignore_eos=True)
    plain, offered = (
        Chat(messages=[QUESTION], tools=tools, tool_choice=choice)
        for tools, choice in (([], None), (TOOLS, "auto"))
    )
    (output,) = engine.generate([plain], params)
    assert (output.tool_calls, output.finish_reason) == ((), FinishReason.LENGTH)
    engine.add_request("offered", offered, params)
    pieces = []
    while engine.has_unfinished():
        for last in engine.step():
            pieces.append(last.new_text)
    assert "".join(pieces) == last.text == engine.tokenizer.decode(last.token_ids)


def test_generation_ends_with_the_first_call_if_there_may_be_only_one(
    chat_engine: MakeChatEngine,
) -> None:
    # A choice between two calls in a row and nothing else stands in for a model that has learnt it.
    engine = chat_engine(HERMES)
    call = '<tool_call>{"name": "clock", "arguments": {}}</tool_call>'
    ids = engine.tokenizer.encode_plain(f"So: {call}{call}")
    counts = []
    for parallel in (True, False):
        chat = Chat(messages=[QUESTION], tools=[CLOCK], parallel_tool_calls=parallel)
        tracker = engine._intake.prepare("x", chat, SamplingParams(max_tokens=500))[0]
        for token_id in [*ids, 256]:
            if tracker.finish_reason is None:
                tracker.request.output_token_ids.append(token_id)
                tracker.append_token(token_id)
        output = tracker.take_output(time.monotonic())
        assert (output.text, output.finish_reason) == ("So:", FinishReason.TOOL_CALLS)
        counts.append((len(output.tool_calls), len(output.token_ids)))
    assert counts == [(2, len(ids) + 1), (1, len("So: " + call) - len("</tool_call>"))]


def test_an_output_that_is_cut_has_its_whole_calls_and_the_rest_as_text(
    chat_engine: MakeChatEngine,
) -> None:
    engine = chat_engine(HERMES)
    call = '<tool_call>{"name": "clock", "arguments": {}}</tool_call>'
    ids = engine.tokenizer.encode_plain(f"{call} <tool_call>{{")
    chat = Chat(messages=[QUESTION], tools=[CLOCK])
    tracker = engine._intake.prepare("x", chat, SamplingParams(max_tokens=len(ids)))[0]
    for token_id in ids:
        tracker.request.output_token_ids.append(token_id)
        tracker.append_token(token_id)
    output = tracker.take_output(time.monotonic())
    assert output.finish_reason is FinishReason.LENGTH
    assert [each.name for each in output.tool_calls] == ["clock"]
    assert output.text == " <tool_call>{"


@pytest.mark.parametrize(
    ("params", "choice"),
    [
        ({"response_format": {"type": "json_object"}}, "auto"),
        ({"structured_outputs": {"choice": ["a"]}}, "required"),
        ({"stop": "x"}, "required"),
        ({"min_tokens": 3}, "required"),
        ({"detokenize": False}, "auto"),
    ],
)
def test_controls_that_contradict_tools_are_refused(
    chat_engine: MakeChatEngine, params: dict[str, Any], choice: str
) -> None:
    chat = Chat(messages=[QUESTION], tools=TOOLS, tool_choice=choice)
    with pytest.raises(RequestError) as caught:
        chat_engine(HERMES).add_request("x", chat, SamplingParams(**params))
    assert caught.value.code == "invalid_request"


def test_strict_is_refused_if_it_would_not_hold() -> None:
    function = {**CLOCK["function"], "strict": True}
    tools = [{"type": "function", "function": function}]
    with pytest.raises(RequestError, match="strict holds only") as caught:
        Chat(messages=[QUESTION], tools=tools)
    assert caught.value.code == "unsupported_parameter"
    assert Chat(messages=[QUESTION], tools=tools, tool_choice="required").must_call


def test_a_schema_that_cannot_be_enforced_is_refused_only_if_it_would_be_enforced() -> None:
    function = {"name": "f", "parameters": {"properties": {"a": {"uniqueItems": True}}}}
    tools = [{"type": "function", "function": function}]
    assert not Chat(messages=[QUESTION], tools=tools).must_call
    with pytest.raises(RequestError, match="cannot be enforced"):
        Chat(messages=[QUESTION], tools=tools, tool_choice="required")


ONLY_FIRST_SYSTEM = (
    "{% if messages[0].role == 'system' %}[S]{{ messages[0].content }}{% endif %}"
    "{% for m in messages %}{% if m.role != 'system' %}[{{ m.role }}]{{ m.content }}{% endif %}"
    "{% endfor %}"
)


@pytest.mark.parametrize(
    ("template", "messages", "ignored"),
    [
        (
            ONLY_FIRST_SYSTEM,
            [QUESTION, {"role": "system", "content": "Be brief."}, QUESTION],
            r"the content of messages\.1 \(role system\)",
        ),
        (
            "{% for m in messages %}{% if m.tool_calls %}{{ m.tool_calls }}{% else %}"
            "{{ m.content }}{% endif %}{% endfor %}",
            [QUESTION, {**ANSWERED[1], "content": "Let me see."}, *ANSWERED[2:]],
            r"the content of messages\.1 \(role assistant\)",
        ),
        (
            "{% for m in messages %}{{ m.content }}{% if m.tool_calls %}{{ m.tool_calls[0] }}"
            "{% endif %}{% endfor %}",
            [
                QUESTION,
                {
                    **ANSWERED[1],
                    "tool_calls": [
                        *ANSWERED[1]["tool_calls"],
                        {**ANSWERED[1]["tool_calls"][0], "id": "another"},
                    ],
                },
                *ANSWERED[2:],
            ],
            "all but the first of a message's tool_calls",
        ),
    ],
    ids=["a later system message", "text beside calls", "a second call"],
)
def test_a_template_that_leaves_out_content_is_an_error(
    byte_model: LoadedModel, template: str, messages: list[dict[str, Any]], ignored: str
) -> None:
    with pytest.raises(RequestError, match=f"ignores {ignored}") as caught:
        rendered(byte_model, template, messages=messages)
    assert caught.value.code == "unsupported_parameter"


def test_a_template_that_reads_parts_only_gets_parts(byte_model: LoadedModel) -> None:
    template = (
        "{% for m in messages %}{% for p in m.content %}{{ p.text }};{% endfor %}{% endfor %}"
    )
    chat = [{"role": "system", "content": "Be brief."}, QUESTION]
    assert rendered(byte_model, template, messages=chat) == f"Be brief.;{QUESTION['content']};"


def test_null_content_beside_calls_is_empty_if_the_template_needs_a_text(
    byte_model: LoadedModel,
) -> None:
    template = "{% for m in messages %}{{ m.role + m.content }}{{ m.tool_calls }}{% endfor %}"
    text = rendered(byte_model, template, messages=ANSWERED)
    assert "assistant[{" in text


def test_any_error_of_a_template_refuses_the_messages(byte_model: LoadedModel) -> None:
    with pytest.raises(RequestError, match="ZeroDivisionError") as caught:
        rendered(byte_model, "{{ 1 / (messages | length - 1) }}", messages=[QUESTION])
    assert caught.value.code == "invalid_request"


#: Looks at every message again for each message, as templates do that search for the last user.
SEARCHING = (
    "{% for message in messages %}"
    "{{ message.role }}: {{ message.content }}"
    "{{ (messages | selectattr('role', 'equalto', 'user') | list | last).content }}"
    "{% endfor %}"
)


def test_a_chat_whose_template_takes_too_long_is_refused(
    byte_model: LoadedModel,
) -> None:
    tokenizer = hf_tokenizer(byte_model, SEARCHING)
    messages = [{"role": "user", "content": str(number)} for number in range(3000)]

    with pytest.raises(RequestError, match="3000 messages, the limit: send fewer") as caught:
        render_chat(tokenizer, Chat(messages=messages), "the model")
    assert caught.value.code == "chat_too_complex"
    assert render_chat(tokenizer, Chat(messages=messages[:20]), "the model")
