"""Calls of functions in outputs: which texts are calls, and that no text is ever lost."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchmill.engine.text.call_reading import ParsedCall
from batchmill.engine.text.thoughts import end_of_open_thought
from batchmill.engine.text.tool_calls import FORMATS, detect_format
from batchmill.engine.text.tool_reader import ToolCallReader

from ...support.chat_templates import HERMES, LLAMA3, MISTRAL, MISTRAL_ARGS, PLAIN

NAMES = frozenset({"f", "g"})
F, G = ParsedCall("f", '{"a": 1}'), ParsedCall("g", "{}")

READ = [
    ("hermes", '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>', "", [F]),
    ("hermes", 'Let me see.\n<tool_call>{"name":"f","arguments":{"a":1}}', "Let me see.", [F]),
    (
        "hermes",
        'a <tool_call>{"name":"f","arguments":{"a":1}}</tool_call>\n'
        '<tool_call>{"name":"g","arguments":{}}</tool_call>\n',
        "a",
        [F, G],
    ),
    (
        "hermes",
        '<tool_call>{"name":"f","arguments":{"a":"</tool_call>"}}</tool_call> b',
        " b",
        [ParsedCall("f", '{"a": "</tool_call>"}')],
    ),
    ("llama3_json", '{"name": "f", "parameters": {"a": 1}}', "", [F]),
    ("llama3_json", '\n{"name": "f", "arguments": {"a": 1}}', "", [F]),
    ("llama3_json", 'Hm. <|python_tag|>{"name": "f", "parameters": {"a": 1}}', "Hm.", [F]),
    (
        "llama3_json",
        '{"name": "f", "parameters": {"a": 1}}; {"name": "g", "parameters": {}}',
        "",
        [F, G],
    ),
    ("llama3_json", '{"name": "f", "parameters": {"a": 1}} or so', " or so", [F]),
    (
        "llama3_json",
        '[{"name": "f", "parameters": {"a": 1}}, {"name": "g", "parameters": {}}]',
        "",
        [F, G],
    ),
    ("llama3_json", 'Hm. <|python_tag|>[{"name": "f", "parameters": {"a": 1}}]', "Hm.", [F]),
    (
        "llama3_json",
        '[ {"name": "f", "parameters": {"a": "<|python_tag|>"}} ]',
        "",
        [ParsedCall("f", '{"a": "<|python_tag|>"}')],
    ),
    (
        "llama3_json",
        '{"name": "f", "parameters": {"a": "<|python_tag|>"}}',
        "",
        [ParsedCall("f", '{"a": "<|python_tag|>"}')],
    ),
    ("mistral", '[TOOL_CALLS][{"name": "f", "arguments": {"a": 1}}]', "", [F]),
    (
        "mistral",
        'x [TOOL_CALLS] [{"name":"f","arguments":{"a":1}}, {"name":"g","arguments":{}}] y',
        "x y",
        [F, G],
    ),
    ("mistral", '[TOOL_CALLS]f[ARGS]{"a": 1}[TOOL_CALLS]g[ARGS]{}', "", [F, G]),
    ("mistral", '[TOOL_CALLS]f{"a": 1}', "", [F]),
    (
        "qwen3_xml",
        "Hm.\n<tool_call>\n<function=f>\n<parameter=a>\n1\n</parameter>\n</function>\n</tool_call>",
        "Hm.",
        [ParsedCall("f", '{"a": "1"}')],
    ),
    (
        "glm45",
        "Hm.\n<tool_call>f\n<arg_key>a</arg_key>\n<arg_value>1</arg_value>\n</tool_call>",
        "Hm.",
        [ParsedCall("f", '{"a": "1"}')],
    ),
    (
        "minimax_m2",
        'Hm.\n<minimax:tool_call>\n<invoke name="f">\n<parameter name="a">1</parameter>\n'
        "</invoke>\n"
        '<invoke name="g">\n</invoke>\n</minimax:tool_call>',
        "Hm.",
        [ParsedCall("f", '{"a": "1"}'), G],
    ),
    (
        "kimi_k2",
        "Hm.<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>"
        '{"a": 1}<|tool_call_end|><|tool_call_begin|>functions.g:1<|tool_call_argument_begin|>{}'
        "<|tool_call_end|><|tool_calls_section_end|>",
        "Hm.",
        [F, G],
    ),
    (
        "deepseek_v3",
        "Hm.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n"
        '{"a": 1}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
        "Hm.",
        [F],
    ),
    (
        "deepseek_v31",
        'Hm.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{"a": 1}<｜tool▁call▁end｜>'
        "<｜tool▁call▁begin｜>g<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        "Hm.",
        [F, G],
    ),
    ("granite", 'Hm. <|tool_call|>[{"name": "f", "arguments": {"a": 1}}]', "Hm.", [F]),
    (
        "phi4_mini",
        'Hm. functools[{"name": "f", "arguments": {"a": 1}}, {"name": "g", "arguments": {}}]',
        "Hm.",
        [F, G],
    ),
    ("mistral", '[TOOL_CALLS]f[CALL_ID]a1b2c3d4e[ARGS]{"a": 1}', "", [F]),
    ("mistral", '[TOOL_CALLS]{"name": "f", "arguments": {"a": 1}}', "", [F]),
]
BROKEN = [
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": </tool_call>'),
    ("hermes", '<tool_call>{"name": "f", "arguments": [1]}</tool_call>'),
    ("hermes", '<tool_call>{"name": "unknown", "arguments": {}}</tool_call>'),
    ("hermes", '<tool_call>{"name": ["f"], "arguments": {}}</tool_call>'),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": NaN}}</tool_call>'),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": 1e400}}</tool_call>'),
    ("hermes", '<tool_call>{"name": "f", "arguments": {}} and so on </tool_call>'),
    ("hermes", '<tool_call>{"name": "f", "arguments": {"a": "\\ud800"}}</tool_call>'),
    ("hermes", "<tool_call>" + '{"a":' * 100_000),
    ("hermes", "<tool_call>"),
    ("hermes", "</tool_call>"),
    ("hermes", "half a <tool_ca"),
    ("llama3_json", '{"name": "f"}'),
    ("llama3_json", '{"name": "f", "parameters": {"a": 1}'),
    ("llama3_json", '{"city": "Bern", "days": 3}'),
    ("llama3_json", "<|python_tag|>import os"),
    ("llama3_json", "[" * 100_000),
    ("llama3_json", '[{"name": "f", "parameters": {}}, {"name": "unknown", "parameters": {}}]'),
    ("llama3_json", '[{"city": "Bern"}]'),
    ("llama3_json", "[1] is a footnote"),
    ("llama3_json", "[]"),
    ("mistral", '[TOOL_CALLS][{"name": "f", "arguments": {}}, {"name": "x", "arguments": {}}]'),
    ("mistral", '[TOOL_CALLS][{"name": "f"'),
    ("mistral", "[TOOL_CALLS]f[ARGS]"),
    ("mistral", "[TOOL_CALLS]f[ARGS][1]"),
    ("mistral", "[TOOL_CALLS][TOOL_CALLS]"),
    *((name, text) for name in FORMATS for text in ("", " ", "Just text.\n", '"', "\ufffd")),
]


def read(name: str, text: str, pieces: int = 1, **settings: Any) -> tuple[str, list[str]]:
    """Return text and call names of an output that arrives in a number of pieces."""
    reader = a_reader(name, **settings)
    cuts = [len(text) * cut // pieces for cut in range(pieces + 1)]
    shown = [reader.append(text[a:b]) for a, b in pairwise(cuts)]
    shown.append(reader.finish())
    return "".join(shown), [call.name for call in reader.calls]


def a_reader(
    name: str, *, is_single_call: bool = False, seed: int = 5, end_of_thought: str = ""
) -> ToolCallReader:
    return ToolCallReader(
        FORMATS[name],
        NAMES,
        is_single_call=is_single_call,
        prompt_token_ids=[1, 2],
        seed=seed,
        end_of_thought=end_of_thought,
    )


@pytest.mark.parametrize(("name", "text", "rest", "calls"), READ)
def test_calls_are_taken_out_of_the_text(
    name: str, text: str, rest: str, calls: list[ParsedCall]
) -> None:
    parsed = FORMATS[name].parse(text, NAMES)
    assert parsed == (rest, calls)
    for pieces in (1, 2, 7, len(text)):
        assert read(name, text, pieces) == (rest, [call.name for call in calls])


@pytest.mark.parametrize(("name", "text"), BROKEN)
def test_text_that_is_not_a_call_stays_text(name: str, text: str) -> None:
    assert FORMATS[name].parse(text, NAMES) == (text, [])
    for pieces in (1, 3, 50):
        assert read(name, text, pieces) == (text, [])


CALLS = {
    "hermes": '<tool_call>{"name": "f", "arguments": {}}</tool_call>',
    "llama3_json": '{"name": "f", "parameters": {}}',
    "mistral": "[TOOL_CALLS]f[ARGS]{}",
    "qwen3_xml": "<tool_call>\n<function=f>\n</function>\n</tool_call>",
    "glm45": "<tool_call>f\n</tool_call>",
    "minimax_m2": '<minimax:tool_call>\n<invoke name="f">\n</invoke>\n</minimax:tool_call>',
    "kimi_k2": "<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0"
    "<|tool_call_argument_begin|>{}<|tool_call_end|><|tool_calls_section_end|>",
    "deepseek_v3": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n"
    "```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    "deepseek_v31": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{}"
    "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
    "granite": '<|tool_call|>[{"name": "f", "arguments": {}}]',
    "phi4_mini": 'functools[{"name": "f", "arguments": {}}]',
}
THOUGHTS = [
    # The output, as a template of the calls f and g; whether the prompt began a thought; the text.
    ("<think>{f}</think>", "", "<think>{f}</think>", 0),
    ("<think>Perhaps {f}?</think>\n\n{f}", "", "<think>Perhaps {f}?</think>", 1),
    ("Perhaps {f}?</think>\n{f}", "</think>", "Perhaps {f}?</think>", 1),
    ("{f} has no end", "</think>", "{f} has no end", 0),
    ("[THINK]{f}[/THINK]{f}", "", "[THINK]{f}[/THINK]", 1),
    ("<think>{f}[/THINK]{f}", "", "<think>{f}[/THINK]{f}", 0),
    ("<think>1</think><think>{f}</think> {f}", "", "<think>1</think><think>{f}</think>", 1),
    ("no thought</think>", "", "no thought</think>", 0),
    ("half a <thin", "", "half a <thin", 0),
    ("<think>{f}</thin", "", "<think>{f}</thin", 0),
]


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize(("template", "end_of_thought", "shown", "num_calls"), THOUGHTS)
def test_a_call_inside_a_thought_is_text(
    name: str, template: str, end_of_thought: str, shown: str, num_calls: int
) -> None:
    text, expected = (each.replace("{f}", CALLS[name]) for each in (template, shown))
    for pieces in (1, 2, 7, len(text)):
        rest, calls = read(name, text, pieces, end_of_thought=end_of_thought)
        assert (rest.rstrip(), calls) == (expected, ["f"] * num_calls)


def test_tags_of_a_thought_inside_arguments_are_part_of_them() -> None:
    text = '<tool_call>{"name": "f", "arguments": {"a": "<think>b</think>"}}</tool_call>'
    rest, calls = read("hermes", text, 5)
    assert (rest, calls) == ("", ["f"])


@pytest.mark.parametrize(
    ("prompt", "end"),
    [("<|assistant|><think>\n", "</think>"), ("[THINK]", "[/THINK]"), ("<think></think>", "")],
)
def test_a_prompt_may_begin_the_thought(prompt: str, end: str) -> None:
    assert end_of_open_thought(prompt) == end


@given(
    name=st.sampled_from(sorted(FORMATS)),
    parts=st.lists(
        st.sampled_from(
            [
                "<tool_call>",
                "</tool_call>",
                "<|python_tag|>",
                "[TOOL_CALLS]",
                "[ARGS]",
                "f",
                "g",
                '{"name": "f", "arguments": {}}',
                '{"name": "g", "parameters": {}}',
                "[",
                "]",
                "{",
                '{"a": 1}',
                "}",
                " ",
                "\n",
                ";",
                ",",
                "text",
                "<tool",
                "<",
                "<think>",
                "</think>",
                "[THINK]",
                "[TOOL",
                '"',
            ]
        ),
        max_size=12,
    ),
    pieces=st.integers(1, 40),
)
def test_an_output_reads_the_same_however_it_is_cut_and_never_raises(
    name: str, parts: list[str], pieces: int
) -> None:
    text = "".join(parts)
    whole = read(name, text)
    assert read(name, text, pieces) == whole
    rest, calls = whole
    assert rest.count("text") == text.count("text")
    if not calls:
        assert rest == text


@pytest.mark.parametrize("name", FORMATS)
def test_text_before_a_call_is_shown_at_once_and_markup_never(name: str) -> None:
    reader, (_, text, rest, _) = (
        a_reader(name),
        next(each for each in READ if each[0] == name and each[2]),
    )
    shown = ""
    for character in text:
        shown += reader.append(character)
        assert rest.startswith(shown)
        assert not any(marker[:2] in shown for marker in FORMATS[name].markers)
    plain = a_reader(name)
    assert plain.append("An answer") == "An answer"


def test_a_call_is_there_with_its_whole_object() -> None:
    reader = a_reader("hermes", is_single_call=True)
    reader.append('<tool_call>{"name": "f", "arguments": {"a": {}')
    assert not reader.has_call
    reader.append("}}")
    assert reader.has_call
    unknown = a_reader("hermes", is_single_call=True)
    unknown.append('<tool_call>{"name": "unknown", "arguments": {}}')
    assert not unknown.has_call


@pytest.mark.parametrize(("name", "length"), [("hermes", 29), ("llama3_json", 29), ("mistral", 9)])
def test_ids_of_calls_depend_on_prompt_and_seed_alone(name: str, length: int) -> None:
    text = next(text for form, text, _, calls in READ if form == name and len(calls) == 2)

    def ids(seed: int) -> list[str]:
        reader = a_reader(name, seed=seed)
        reader.append(text)
        reader.finish()
        return [call.id for call in reader.calls]

    assert ids(5) == ids(5)
    assert len({*ids(5), *ids(6)}) == 4
    assert {len(each) for each in ids(5)} == {length}


def test_arguments_are_json_with_its_characters_as_they_are() -> None:
    text = '<tool_call>{"name": "f", "arguments": {"a": "Z\\u00fcrich", "b": 1.50}}</tool_call>'
    (call,) = FORMATS["hermes"].parse(text, NAMES).calls
    assert call.arguments == '{"a": "Zürich", "b": 1.5}'
    assert json.loads(call.arguments) == {"a": "Zürich", "b": 1.5}


def test_the_format_is_read_from_the_template() -> None:
    assert detect_format(HERMES) == "hermes"
    assert detect_format(LLAMA3) == "llama3_json"
    assert detect_format(MISTRAL) == "mistral"
    assert detect_format(MISTRAL_ARGS) == "mistral"
    assert detect_format(PLAIN) is None
    assert detect_format("{{ '<tool_call><function=' }}") == "qwen3_xml"
    assert detect_format("{{ '<tool_call>' }}{{ '<arg_key>' }}") == "glm45"
    assert detect_format("{{ '<minimax:tool_call>' }}") == "minimax_m2"
    assert detect_format("{{ '<|tool_calls_section_begin|>' }}") == "kimi_k2"
    begin = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>"
    assert detect_format(f"{begin}function<｜tool▁sep｜>") == "deepseek_v3"
    assert detect_format(f"{begin}' + name + '<｜tool▁sep｜>") == "deepseek_v31"
    assert detect_format("{{ '<|tool_call|>' }}") == "granite"
    assert detect_format("functools[") == "phi4_mini"
    assert detect_format('Its "parameters": none') is None


def test_a_call_of_glm_ends_with_its_tag_alone() -> None:
    """Its name may grow from that of another function, and further arguments may follow."""
    text = (
        "<tool_call>get_weather\n<arg_key>a</arg_key>\n<arg_value>1</arg_value>\n"
        "<arg_key>b</arg_key>\n<arg_value>2</arg_value>\n</tool_call>"
    )
    form, names = FORMATS["glm45"], {"get": None, "get_weather": None}
    for end in range(len(text) - len("</tool_call>") + 1):
        assert form.parse(text[:end], names).calls == []
    assert form.parse(text, names).calls == [ParsedCall("get_weather", '{"a": "1", "b": "2"}')]


@pytest.mark.parametrize(
    ("value", "schema", "argument"),
    [
        ("1" + "0" * 400, {"type": "integer"}, "1" + "0" * 400),
        ("[NaN, 1e999]", {"type": "array"}, '"[NaN, 1e999]"'),
        ("1", {"anyOf": 5}, '"1"'),
        ("1", {"type": 5, "oneOf": [None, {"type": ["null", "integer"]}]}, "1"),
    ],
)
def test_odd_values_and_schemas_make_a_call_of_json(
    value: str, schema: object, argument: str
) -> None:
    text = f"<tool_call><function=f><parameter=a>{value}</parameter></function></tool_call>"
    names = {"f": {"properties": {"a": schema}}}
    (call,) = FORMATS["qwen3_xml"].parse(text, names).calls
    assert call.arguments == f'{{"a": {argument}}}'


def test_a_deep_schema_makes_a_call() -> None:
    schema: dict[str, object] = {"type": "integer"}
    for _ in range(3000):
        schema = {"anyOf": [schema]}
    text = "<tool_call>f<arg_key>a</arg_key><arg_value>1</arg_value></tool_call>"
    names = {"f": {"properties": {"a": schema}}}
    assert FORMATS["glm45"].parse(text, names).calls == [ParsedCall("f", '{"a": "1"}')]


@pytest.mark.parametrize(
    ("name", "piece"),
    [
        ("glm45", "<tool_call>f<arg_key>a</arg_key><arg_value>"),
        ("glm45", "<arg_key>a</arg_key><arg_value>"),
        ("qwen3_xml", "<tool_call><function=f><parameter=a>"),
    ],
)
def test_arguments_without_an_end_are_read_in_linear_time(name: str, piece: str) -> None:
    """Read again from each opening tag, such a text would take hours."""
    text = f"{FORMATS[name].markers[0]}f" + piece * 10_000
    assert FORMATS[name].parse(text, NAMES) == (text, [])
