"""Outputs in the formats of model families, read as transformers reads them by a response template.

The outputs are written by hand in the form in which each family's chat template shows earlier
calls; transformers brings the parser, and the templates are ours, because the models that bring
their own cannot be downloaded here.
"""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
from transformers.utils.chat_parsing import parse_response

from batchmill.engine import Chat, Engine, EngineConfig, RequestError, SamplingParams
from batchmill.engine.text.response_template import UnusableTemplate, read_response_template
from batchmill.engine.text.thoughts import Thoughts
from batchmill.engine.text.tool_calls import FORMATS
from batchmill.engine.text.tool_reader import ToolCallReader

from ...support.chat_model import save_chat_model

SCHEMA = {
    "type": "object",
    "properties": {
        "city": {"type": "string"},
        "days": {"type": "integer"},
        "exact": {"type": "boolean"},
        "places": {"type": "array"},
        "limit": {"anyOf": [{"type": "number"}, {"type": "null"}]},
    },
}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": name, "parameters": SCHEMA}}
    for name in ("weather", "clock")
]
THOUGHT = {"open": "<think>", "close": "</think>"}
SHAPE = {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}}
OF_LIST = {"type": "function", "function": {"name": "{name}", "arguments": "{arguments}"}}
IN_TAGS = {"content": "xml-inline"}
JSON = {"content": "json", "transform": SHAPE, "repeats": True}


def tags(pattern: str) -> dict[str, Any]:
    return IN_TAGS | {
        "content_args": {"tag_pattern": pattern},
        "transform": SHAPE,
        "repeats": True,
    }


CITY = '{"city": "Oslo", "days": 3}'
#: The format, an output, and the field of transformers' response template that reads its calls.
RECORDED = [
    (
        "hermes",
        f'<think>\nWhere?\n</think>\n\nOne moment.\n<tool_call>\n{{"name": "weather", '
        f'"arguments": {CITY}}}\n</tool_call>\n<tool_call>\n{{"name": "clock", "arguments": {{}}}}'
        "\n</tool_call>",
        {
            "open_pattern": r"\s*<tool_call>",
            "close": "</tool_call>",
            "content": "json",
            "repeats": True,
            "transform": {
                "type": "function",
                "function": {"name": "{content.name}", "arguments": "{content.arguments}"},
            },
        },
    ),
    (
        "qwen3_xml",
        "<think>\nWhere?\n</think>\n\n<tool_call>\n<function=weather>\n<parameter=city>\nOslo\n"
        "</parameter>\n<parameter=days>\n3\n</parameter>\n<parameter=exact>\ntrue\n</parameter>\n"
        '<parameter=places>\n["a", "b"]\n</parameter>\n<parameter=limit>\n2.5\n</parameter>\n'
        "</function>\n</tool_call>",
        {
            "open_pattern": r"<tool_call>\s*<function=(?P<name>[^>\n]+)>",
            "close_pattern": r"</function>\s*</tool_call>",
            **tags(r"<parameter=(?P<key>[^>\n]+)>\n?(?P<value>.*?)\n?</parameter>"),
        },
    ),
    (
        "glm45",
        "<think>Where?</think>\n<tool_call>weather\n<arg_key>city</arg_key>\n"
        "<arg_value>Oslo</arg_value>\n<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n"
        "</tool_call>\n<tool_call>clock\n</tool_call>",
        {
            "open_pattern": r"<tool_call>(?P<name>[\w.-]+)\s*\n",
            "close": "</tool_call>",
            **tags(r"<arg_key>(?P<key>.*?)</arg_key>\s*<arg_value>(?P<value>.*?)</arg_value>"),
        },
    ),
    (
        "minimax_m2",
        'Let me see.\n<minimax:tool_call>\n<invoke name="weather">\n'
        '<parameter name="city">Oslo</parameter>\n<parameter name="days">3</parameter>\n'
        "</invoke>\n</minimax:tool_call>",
        {
            "open_pattern": r'<minimax:tool_call>\s*<invoke name="(?P<name>[^"]+)">',
            "close_pattern": r"</invoke>\s*</minimax:tool_call>",
            **tags(r'<parameter name="(?P<key>[^"]+)">(?P<value>.*?)</parameter>'),
        },
    ),
    (
        "kimi_k2",
        "I look.<|tool_calls_section_begin|><|tool_call_begin|>functions.weather:0"
        f"<|tool_call_argument_begin|>{CITY}<|tool_call_end|><|tool_calls_section_end|>",
        {
            "open_pattern": r"<\|tool_calls_section_begin\|><\|tool_call_begin\|>functions\."
            r"(?P<name>\w+):\d+<\|tool_call_argument_begin\|>",
            "close": "<|tool_call_end|><|tool_calls_section_end|>",
            **JSON,
        },
    ),
    (
        "deepseek_v3",
        "I look.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>weather\n```json\n"
        f"{CITY}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        {
            "open_pattern": r"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>"
            r"(?P<name>\w+)\n```json\n",
            "close": "\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
            **JSON,
        },
    ),
    (
        "deepseek_v31",
        "<think>Where?</think>I look.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>weather"
        f"<｜tool▁sep｜>{CITY}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        {
            "open_pattern": r"<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>"
            r"(?P<name>\w+)<｜tool▁sep｜>",
            "close": "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
            **JSON,
        },
    ),
    (
        "granite",
        f'<|tool_call|>[{{"name": "weather", "arguments": {CITY}}}, '
        '{"name": "clock", "arguments": {}}]',
        {
            "open": "<|tool_call|>",
            "content": "json",
            "transform": OF_LIST,
            "transform_each": True,
        },
    ),
    (
        "phi4_mini",
        f'functools[{{"name": "weather", "arguments": {CITY}}}]',
        {
            "open": "functools",
            "content": "json",
            "transform": OF_LIST,
            "transform_each": True,
        },
    ),
    (
        "mistral",
        f'[TOOL_CALLS][{{"name": "weather", "arguments": {CITY}}}]',
        {
            "open": "[TOOL_CALLS]",
            "content": "json",
            "transform": OF_LIST,
            "transform_each": True,
        },
    ),
]


@pytest.mark.parametrize(("form", "output", "calls"), RECORDED, ids=[each[0] for each in RECORDED])
def test_transformers_reads_the_same(form: str, output: str, calls: dict[str, Any]) -> None:
    template = {
        "start_anchor": "<assistant>",
        "defaults": {"role": "assistant"},
        "fields": {"content": {}, "reasoning_content": THOUGHT, "tool_calls": calls},
    }
    message = parse_response(output, template, prefix="<assistant>", tools=TOOLS)
    expected = [call["function"] for call in message["tool_calls"]]

    of_template = read_response_template(template, ["[TOOL_CALLS]", "<|tool_call|>", "<unk>"])
    assert of_template.calls is not None
    assert of_template.thoughts == {"<think>": "</think>"}
    assert set(of_template.calls.markers) <= {"[TOOL_CALLS]", "<|tool_call|>"}
    forms = (FORMATS[form], of_template.calls)
    for used, pieces in itertools.product(forms, ([output], list(output))):
        thoughts = Thoughts()
        reader = ToolCallReader(
            used,
            {tool["function"]["name"]: tool["function"]["parameters"] for tool in TOOLS},
            is_single_call=False,
            prompt_token_ids=[1],
            seed=0,
            thoughts=thoughts,
            thought_markers=of_template.thoughts,
        )
        text = "".join(reader.append(piece) for piece in pieces) + reader.finish()
        found = [
            {"name": call.name, "arguments": json.loads(call.arguments)} for call in reader.calls
        ]
        assert found == expected
        assert text.strip() == message.get("content", "")
        assert thoughts.text == message.get("reasoning_content", "")


#: A family that none of our formats knows: `{{name: {…}}}`, and thoughts in `((…))`.
OWN: dict[str, Any] = {
    "start_anchor": "assistant:",
    "defaults": {"role": "assistant"},
    "fields": {
        "content": {},
        "thinking": {"open": "((", "close": "))"},
        "tool_calls": {"open_pattern": r"\{\{(?P<name>\w+):", "close": "}}", **JSON},
    },
}


def read_own(output: str, names: Any = ("weather",)) -> tuple[str, str, list[str]]:
    form = read_response_template(OWN, ())
    assert form.calls is not None
    thoughts = Thoughts()
    reader = ToolCallReader(
        form.calls,
        names,
        is_single_call=False,
        prompt_token_ids=[1],
        seed=0,
        thoughts=thoughts,
        thought_markers=form.thoughts,
    )
    text = "".join(map(reader.append, output)) + reader.finish()
    return text, thoughts.text, [call.arguments for call in reader.calls]


@pytest.mark.parametrize(
    ("output", "text", "thoughts", "calls"),
    [
        (
            '((Hm. {{weather:{} }}))Yes. {{weather:{"a": 1} }}',
            "Yes.",
            "Hm. {{weather:{} }}",
            ['{"a": 1}'],
        ),
        ('I look. {{weather:{"a": 1} }} ', "I look.", "", ['{"a": 1}']),
        ("{{weather:{a} }}", "{{weather:{a} }}", "", []),
        ('{{weather:{"a": NaN} }}', '{{weather:{"a": NaN} }}', "", []),
        ("{{clock:{} }}", "{{clock:{} }}", "", []),
        ("{{weather:{} }}", "", "", ["{}"]),
        ("a {{ b", "a {{ b", "", []),
    ],
    ids=["thought", "call", "no_json", "no_number", "not_offered", "no_arguments", "half_a_marker"],
)
def test_a_template_of_its_own_is_read_and_malformed_calls_stay_text(
    output: str, text: str, thoughts: str, calls: list[str]
) -> None:
    assert read_own(output) == (text, thoughts, calls)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"content": {"open": "<answer>"}}, "marks of its own"),
        ({"content": {}, "thinking": {"open_pattern": "<t>"}}, "literal beginnings"),
        ({"content": {}, "thinking": {"open": "\n", "close": "</t>"}}, "literal beginnings"),
        ({"content": {}, "image": {"open": "<i>"}}, "'image'"),
        ({"content": {"bogus": 1}}, "unknown keys"),
    ],
    ids=["marked_text", "patterns_of_thoughts", "blank_beginnings", "another_field", "not_valid"],
)
def test_a_template_that_cannot_be_followed_says_why(fields: Any, why: str) -> None:
    with pytest.raises(UnusableTemplate, match=why):
        read_response_template({**OWN, "fields": fields}, ())


def test_an_engine_reads_by_the_template_of_its_tokenizer(tmp_path: Path) -> None:
    template = (
        "{{ tools }}{% for m in messages %}{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}assistant:(({% endif %}"
    )
    save_chat_model(tmp_path, template)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | {"response_template": OWN}))
    engine = Engine(
        EngineConfig(
            model=str(tmp_path),
            device="cpu",
            dtype="float32",
            max_model_len=1024,
            kv_cache_bytes=1 << 21,
        )
    )
    messages = [{"role": "user", "content": "Where?"}]
    chat = Chat(messages=messages, tools=TOOLS)
    output = 'Hm.))I look. {{weather:{"city": "Oslo"} }}'
    saved = engine.tokenizer.encode_plain(output)
    params = SamplingParams(max_tokens=len(saved), temperature=0, thinking_token_budget=9)
    engine.add_request("r", chat, params, saved)
    (last,) = engine.step()
    assert (last.text, last.reasoning, last.finish_reason) == ("I look.", "Hm.", "length")
    assert [call.arguments for call in last.tool_calls] == ['{"city": "Oslo"}']
    with pytest.raises(RequestError, match=re.escape("no grammar for them is known")):
        engine.generate([Chat(messages=messages, tools=TOOLS, tool_choice="required")])
    # The operator's choice comes first, and thoughts end at their budget.
    (bound,) = engine.generate(
        [Chat(messages=messages)],
        SamplingParams(max_tokens=12, thinking_token_budget=3, temperature=0, ignore_eos=True),
    )
    assert engine.tokenizer.decode(bound.token_ids[3:5]) == "))"
