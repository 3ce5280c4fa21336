"""Thoughts of chats are apart from their text, whatever pieces they come in."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from batchmill.engine import Engine, EngineConfig, RequestOutput, SamplingParams
from batchmill.engine.text.chat import Chat
from batchmill.engine.text.thoughts import Thoughts, writes_thoughts
from batchmill.engine.text.tool_calls import FORMATS, NO_CALLS
from batchmill.engine.text.tool_reader import ToolCallReader

from ...support.chat_model import save_chat_model

CALL = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
#: An output, what ends the thought in which it begins, its text, and its thoughts.
CASES = [
    ("<think>Hm.</think>Yes.", "", "Yes.", "Hm."),
    ("\n<think>\nHm.\n</think>\n\nYes. ", "", "Yes. ", "Hm."),
    ("Hm.\n</think>\n\nYes.", "</think>", "Yes.", "Hm."),
    ("[THINK]Hm.[/THINK]Yes.", "", "Yes.", "Hm."),
    ("<think>Hm", "", "", "Hm"),
    ("<think>Hm</thi", "", "", "Hm</thi"),
    ("<think></think>Yes.", "", "Yes.", ""),
    ("<think>\n\n</think>\n\nYes.", "", "Yes.", ""),
    ("One <think>two</think> three", "", "Onethree", "two"),
    ("<think>1</think>a<think>2</think>b", "", "ab", "1\n\n2"),
    ("<think>a <b> [/THINK]</think>Yes.", "", "Yes.", "a <b> [/THINK]"),
    ("No thought, a < b <thin", "", "No thought, a < b <thin", ""),
    ("  Yes.  ", "", "  Yes.  ", ""),
]


def read(pieces: list[str], end_of_thought: str, form: str = "") -> tuple[str, str, int]:
    thoughts = Thoughts()
    reader = ToolCallReader(
        FORMATS[form] if form else NO_CALLS,
        frozenset({"f"}),
        is_single_call=False,
        prompt_token_ids=[1],
        seed=0,
        end_of_thought=end_of_thought,
        thoughts=thoughts,
    )
    text = "".join(reader.append(piece) for piece in pieces) + reader.finish()
    return text, thoughts.text, len(reader.calls)


@pytest.mark.parametrize(("output", "end", "text", "thought"), CASES)
def test_thoughts_are_taken_out_in_whatever_pieces(
    output: str, end: str, text: str, thought: str
) -> None:
    assert read([output], end) == (text, thought, 0)
    assert read(list(output), end) == (text, thought, 0)
    for cut in range(len(output)):
        assert read([output[:cut], output[cut:]], end) == (text, thought, 0)


def test_calls_in_a_thought_are_none_and_those_after_it_are_some() -> None:
    output = f"<think>{CALL}</think>\n\nLook. {CALL}"
    for pieces in ([output], list(output)):
        assert read(pieces, "", "hermes") == ("Look.", CALL, 1)
    # A thought inside of an argument is none.
    output = '<tool_call>{"name": "f", "arguments": {"a": "<think>b</think>"}}</tool_call>'
    assert read(list(output), "", "hermes") == ("", "", 1)


def test_only_templates_with_the_markup_have_thoughts() -> None:
    assert writes_thoughts("{% if x %}<think>{% endif %}")
    assert writes_thoughts("{{ content.split('</think>')[-1] }}")
    assert not writes_thoughts("<no_think> {{ thoughts }}")


THINKING = (
    "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %}:{% endif %}"
    "{# </think> #}"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("thinking")
    save_chat_model(folder, THINKING)
    return folder


def test_an_engine_reports_thoughts_apart_also_of_a_resumed_request(folder: Path) -> None:
    token_ids = AutoTokenizer.from_pretrained(folder).encode("<think>Hm.</think>Yes.")
    chat = Chat(messages=[{"role": "user", "content": "hi"}])
    params = SamplingParams(max_tokens=len(token_ids), temperature=0)
    found = {}
    for parser in ("auto", "none"):
        config = EngineConfig(
            model=str(folder),
            device="cpu",
            dtype="float32",
            max_model_len=256,
            kv_cache_bytes=1 << 20,
            reasoning_parser=parser,
        )
        engine = Engine(config)
        # The last token is computed, and may be any.
        engine.add_request("r", chat, params, resumed_token_ids=token_ids[:-1])
        outputs: list[RequestOutput] = []
        while not (outputs and outputs[-1].finished):
            outputs += engine.step()
        last = outputs[-1]
        assert last.completions[0].reasoning == last.reasoning
        found[parser] = last.text[: len("<think>Hm.</think>Yes")], last.reasoning
        assert last.usage.reasoning_tokens == last.num_reasoning_tokens
        # From the last byte of the beginning to the last one of the end.
        expected = len("<think>Hm.</think>") - len("<think") if parser == "auto" else 0
        assert last.num_reasoning_tokens == expected
    assert found["auto"][0].startswith("Yes")
    assert found["auto"][1] == "Hm."
    assert found["none"] == ("<think>Hm.</think>Yes", "")
