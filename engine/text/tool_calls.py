"""Tool calls in an output, and the formats in which model families write them."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from .call_reading import (
    BLANKS,
    ParsedCall,
    ParsedText,
    before_marker,
    call_of,
    calls_of,
    json_at,
    parsed,
    skip,
)
from .tagged_calls import ArgumentsInJson, ArgumentsInTags, ListInJson


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call of a function."""

    #: A function of the prompt, the seed and the place of the call in the output.
    id: str
    name: str
    #: A JSON object, as text.
    arguments: str


class ToolCallFormat(Protocol):
    """The format in which one family of models writes calls.

    A malformed call, or one of a function that was not offered, stays in the text.
    """

    @property
    def markers(self) -> tuple[str, ...]:
        """Texts that are part of the format, and may be special tokens."""

    @property
    def id_length(self) -> int:
        """Characters of a call's id, without a prefix."""

    def find_start(self, text: str, *, is_beginning: bool) -> int:
        """Return how many leading characters cannot belong to a call, whatever comes next.

        Args:
            text: An output, or the rest of one.
            is_beginning: Whether the output begins with this text.
        """

    def parse(self, text: str, names: Collection[str]) -> ParsedText:
        """Remove the calls of some functions from a text. Never raises.

        Args:
            text: An output, or the rest of one.
            names: The functions; a mapping to the schema of each one's arguments lets a format
                whose values have no types read them.
        """


class _HermesFormat:
    """`<tool_call>{"name": …, "arguments": {…}}</tool_call>` for each call.

    Source: the Hermes function calling format, also of Qwen 2.5 and Qwen 3.
    """

    markers = ("<tool_call>", "</tool_call>")
    id_length = 24

    def find_start(self, text: str, *, is_beginning: bool) -> int:
        return before_marker(text, self.markers[0])

    def parse(self, text: str, names: Collection[str]) -> ParsedText:
        opening, closing = self.markers
        rest, calls, position = [], [], 0
        start = text.find(opening)
        while start >= 0:
            value, end = json_at(text, skip(text, start + len(opening)))
            end = skip(text, end)
            call = call_of(value, names, "arguments")
            # The last one may have no closing tag: a model may end its turn with the object.
            if call is not None and (end == len(text) or text.startswith(closing, end)):
                rest.append(text[position:start].rstrip())
                calls.append(call)
                position = end = min(end + len(closing), len(text))
            start = text.find(opening, max(end, start + len(opening)))
        return parsed([*rest, text[position:]], calls)


class _Llama3JsonFormat:
    """`{"name": …, "parameters": {…}}` as the whole output, or after `<|python_tag|>`.

    Several calls are separated by `;`, or are a JSON list.

    Source: the JSON based tool calling of Llama 3.1 and 3.2.
    """

    markers = ("<|python_tag|>",)
    id_length = 24
    _CALL: Final = re.compile(r"\s*(?:\[\s*)?\{")
    _PERHAPS_CALL: Final = re.compile(r"\s*(?:\[\s*)?(?:\{|\Z)")

    def find_start(self, text: str, *, is_beginning: bool) -> int:
        if is_beginning and self._PERHAPS_CALL.match(text):
            return 0
        return before_marker(text, self.markers[0])

    def parse(self, text: str, names: Collection[str]) -> ParsedText:
        before, marker, after = text.partition(self.markers[0])
        if not marker or self._CALL.match(before):
            before, after = "", text
        calls: list[ParsedCall] = []
        position = 0
        while True:
            value, end = json_at(after, skip(after, position, BLANKS + ";" * bool(calls)))
            found = calls_of(value, names, "parameters", "arguments")
            if not found:
                break
            calls += found
            position = end
        if not calls:
            return ParsedText(text, [])
        return parsed([before.rstrip(), after[position:]], calls)


class _MistralFormat:
    """`[TOOL_CALLS][{"name": …, "arguments": {…}}, …]`, or `[TOOL_CALLS]name[ARGS]{…}` for each.

    A model may write `[CALL_ID]` and an id before `[ARGS]`; calls get ids of ours.

    Source: the tool calling of Mistral's tokenizers, version 3 and, with `[ARGS]`, version 11.
    """

    markers = ("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]")
    #: Mistral's templates refuse ids of another length.
    id_length = 9
    _NAME: Final = re.compile(
        r"\s*([a-zA-Z0-9_-]+)\s*(?:\[CALL_ID\]\s*[a-zA-Z0-9]+\s*)?(?:\[ARGS\])?"
    )

    def find_start(self, text: str, *, is_beginning: bool) -> int:
        return before_marker(text, self.markers[0])

    def parse(self, text: str, names: Collection[str]) -> ParsedText:
        marker = self.markers[0]
        rest, calls, position = [], [], 0
        start = text.find(marker)
        while start >= 0:
            found, end = self._calls_at(text, start + len(marker), names)
            if found:
                rest.append(text[position:start].rstrip())
                position = end
                calls += found
            start = text.find(marker, max(end, start + len(marker)))
        return parsed([*rest, text[position:]], calls)

    def _calls_at(
        self, text: str, position: int, names: Collection[str]
    ) -> tuple[list[ParsedCall], int]:
        """Return the calls directly after a marker, and their end; all of a list, or none."""
        match = self._NAME.match(text, position)
        if match is None:
            value, end = json_at(text, skip(text, position))
        else:
            arguments, end = json_at(text, skip(text, match.end()))
            value = {"name": match[1], "arguments": arguments}
        calls = calls_of(value, names, "arguments")
        return (calls, end) if calls else ([], position)


class _NoCalls:
    """The format of a chat that offers no functions."""

    markers = ()
    id_length = 24

    def find_start(self, text: str, *, is_beginning: bool) -> int:
        return len(text)

    def parse(self, text: str, names: Collection[str]) -> ParsedText:
        return ParsedText(text, [])


NO_CALLS: Final[ToolCallFormat] = _NoCalls()
#: Format by the name that the setting `tool_call_parser` uses.
FORMATS: Final[Mapping[str, ToolCallFormat]] = {
    "hermes": _HermesFormat(),
    "llama3_json": _Llama3JsonFormat(),
    "mistral": _MistralFormat(),
    # Qwen 3 Coder and Qwen 3.5.
    "qwen3_xml": ArgumentsInTags(
        "<tool_call>",
        "</tool_call>",
        before=r"\s*<function=([^>\s]+)>\s*",
        argument=r"<parameter=([^>\s]+)>\n?",
        argument_end="\n</parameter>",
        after=r"</function>\s*",
    ),
    # GLM 4.5 and later.
    "glm45": ArgumentsInTags(
        "<tool_call>",
        "</tool_call>",
        before=r"\s*([\w.-]+)\s*",
        argument=r"<arg_key>([^<]+)</arg_key>\s*<arg_value>",
        argument_end="</arg_value>",
        # Only this tag ends the name and the arguments: without it, more may follow.
        after=r"(?=</tool_call>)",
    ),
    # MiniMax M2.
    "minimax_m2": ArgumentsInTags(
        "<minimax:tool_call>",
        "</minimax:tool_call>",
        before=r'\s*<invoke name="([^"]+)">\s*',
        argument=r'<parameter name="([^"]+)">',
        argument_end="</parameter>",
        after=r"</invoke>\s*",
    ),
    # Kimi K2.
    "kimi_k2": ArgumentsInJson(
        "<|tool_calls_section_begin|>",
        "<|tool_calls_section_end|>",
        before=r"\s*<\|tool_call_begin\|>\s*(?:functions\.)?([\w.-]+?)(?::\d+)?\s*"
        r"<\|tool_call_argument_begin\|>\s*",
        after=r"\s*<\|tool_call_end\|>\s*",
        inner=("<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"),
    ),
    # DeepSeek V3 and R1.
    "deepseek_v3": ArgumentsInJson(
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁calls▁end｜>",
        before=r"\s*<｜tool▁call▁begin｜>function<｜tool▁sep｜>([\w.-]+)\s*```json\s*",
        after=r"\s*```\s*<｜tool▁call▁end｜>\s*",
        inner=("<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"),
    ),
    # DeepSeek V3.1.
    "deepseek_v31": ArgumentsInJson(
        "<｜tool▁calls▁begin｜>",
        "<｜tool▁calls▁end｜>",
        before=r"\s*<｜tool▁call▁begin｜>([\w.-]+)<｜tool▁sep｜>\s*",
        after=r"\s*<｜tool▁call▁end｜>\s*",
        inner=("<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"),
    ),
    # Granite 3.
    "granite": ListInJson("<|tool_call|>"),
    # Phi 4 mini.
    "phi4_mini": ListInJson("functools"),
}


#: Formats by a text of their chat templates that no other one has; the first that is found.
_BY_MARKER: Final = (
    ("[TOOL_CALLS]", "mistral"),
    ("<minimax:tool_call>", "minimax_m2"),
    ("<|tool_calls_section_begin|>", "kimi_k2"),
    ("function<｜tool▁sep｜>", "deepseek_v3"),
    ("'function' + '<｜tool▁sep｜>", "deepseek_v3"),
    ("<｜tool▁calls▁begin｜>", "deepseek_v31"),
    ("<|tool_call|>", "granite"),
    ("functools[", "phi4_mini"),
)


def detect_format(template: str) -> str | None:
    """Return the name of the format that a chat template uses; None if it is unknown."""
    for marker, name in _BY_MARKER:
        if marker in template:
            return name
    if "<tool_call>" in template:
        if "<arg_key>" in template:
            return "glm45"
        return "qwen3_xml" if "<function=" in template else "hermes"
    if "<|python_tag|>" in template or re.search(r'"name\\?"\s*:.*"parameters\\?"\s*:', template):
        return "llama3_json"
    return None
