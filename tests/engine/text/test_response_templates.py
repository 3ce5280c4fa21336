"""Outputs in the formats of model families, read as transformers reads them by a response template.

The outputs are written by hand in the form in which each family's chat template shows earlier
calls; transformers brings the parser, and the templates are ours, because the models that bring
their own cannot be downloaded here.
"""

from __future__ import annotations

import json
from typing import Any

import pytest
from transformers.utils.chat_parsing import parse_response

from batchmill.engine.text.thoughts import Thoughts
from batchmill.engine.text.tool_calls import FORMATS
from batchmill.engine.text.tool_reader import ToolCallReader

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

    for pieces in ([output], list(output)):
        thoughts = Thoughts()
        reader = ToolCallReader(
            FORMATS[form],
            {tool["function"]["name"]: tool["function"]["parameters"] for tool in TOOLS},
            is_single_call=False,
            prompt_token_ids=[1],
            seed=0,
            thoughts=thoughts,
        )
        text = "".join(reader.append(piece) for piece in pieces) + reader.finish()
        found = [
            {"name": call.name, "arguments": json.loads(call.arguments)} for call in reader.calls
        ]
        assert found == expected
        assert text.strip() == message.get("content", "")
        assert thoughts.text == message.get("reasoning_content", "")
