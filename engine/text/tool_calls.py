"""Calls of functions in an output: what one is, and how model families spell them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol

#: JSON's.
_BLANKS: Final = " \t\r\n"


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call of a function."""

    #: The same for the same prompt, seed and place, whoever generates it.
    id: str
    name: str
    #: A JSON object, as text.
    arguments: str


class ParsedCall(NamedTuple):
    """A call as it was read from a text."""

    name: str
    #: A JSON object, as text.
    arguments: str


class ParsedText(NamedTuple):
    """A text and the calls that were taken out of it."""

    #: Everything that is no call, and the blanks before a call left out.
    text: str
    calls: list[ParsedCall]


class ToolCallFormat(Protocol):
    """How one family of models spells calls.

    A call that is not spelt well, or names a function that was not offered, stays in the text.
    """

    @property
    def markers(self) -> tuple[str, ...]:
        """Texts that are part of the spelling, and may be special tokens."""

    @property
    def id_length(self) -> int:
        """Characters of a call's id, a prefix left aside."""

    def find_start(self, text: str, *, is_beginning: bool) -> int:
        """Characters of a text that are certain to be no part of a call, whatever comes next.

        Args:
            text: An output, or the rest of one.
            is_beginning: Whether an output begins with it.
        """

    def parse(self, text: str, names: Set[str]) -> ParsedText:
        """Take the calls of some functions out of a text. Never raises."""


class _HermesFormat:
    """`<tool_call>{"name": …, "arguments": {…}}</tool_call>`, one after the other.

    Source: the Hermes function calling format, also of Qwen 2.5 and Qwen 3.
    """

    markers = ("<tool_call>", "</tool_call>")
    id_length = 24

    def find_start(self, text: str, *, is_beginning: bool) -> int:
        return _find_marker(text, self.markers[0])

    def parse(self, text: str, names: Set[str]) -> ParsedText:
        opening, closing = self.markers
        rest, calls, position = [], [], 0
        start = text.find(opening)
        while start >= 0:
            value, end = _json_at(text, _skip(text, start + len(opening)))
            end = _skip(text, end)
            call = _call_of(value, names, "arguments")
            # The last one may lack its end: a model may end its turn with the object.
            if call is not None and (end == len(text) or text.startswith(closing, end)):
                rest.append(text[position:start].rstrip())
                calls.append(call)
                position = end = min(end + len(closing), len(text))
            start = text.find(opening, max(end, start + len(opening)))
        return _parsed([*rest, text[position:]], calls)


class _Llama3JsonFormat:
    """`{"name": …, "parameters": {…}}` as the whole output, or after `<|python_tag|>`.

    Several stand one after the other, with `;` between them.

    Source: the JSON based tool calling of Llama 3.1 and 3.2.
    """

    markers = ("<|python_tag|>",)
    id_length = 24

    def find_start(self, text: str, *, is_beginning: bool) -> int:
        if is_beginning and text.lstrip()[:1] in ("", "{"):
            return 0
        return _find_marker(text, self.markers[0])

    def parse(self, text: str, names: Set[str]) -> ParsedText:
        before, marker, after = text.partition(self.markers[0])
        if not marker or before.lstrip().startswith("{"):
            before, after = "", text
        calls: list[ParsedCall] = []
        position = 0
        while True:
            value, end = _json_at(after, _skip(after, position, _BLANKS + ";" * bool(calls)))
            call = _call_of(value, names, "parameters", "arguments")
            if call is None:
                break
            calls.append(call)
            position = end
        if not calls:
            return ParsedText(text, [])
        return _parsed([before.rstrip(), after[position:]], calls)


class _MistralFormat:
    """`[TOOL_CALLS][{"name": …, "arguments": {…}}, …]`, or `[TOOL_CALLS]name[ARGS]{…}` for each.

    Source: the tool calling of Mistral's tokenizers, version 3 and, with `[ARGS]`, version 11.
    """

    markers = ("[TOOL_CALLS]", "[ARGS]")
    #: Mistral's templates refuse ids of another length.
    id_length = 9
    _NAME: Final = re.compile(r"\s*([a-zA-Z0-9_-]+)\s*(?:\[ARGS\])?")

    def find_start(self, text: str, *, is_beginning: bool) -> int:
        return _find_marker(text, self.markers[0])

    def parse(self, text: str, names: Set[str]) -> ParsedText:
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
        return _parsed([*rest, text[position:]], calls)

    def _calls_at(self, text: str, position: int, names: Set[str]) -> tuple[list[ParsedCall], int]:
        """The calls right behind a marker, and where they end; all of a list, or none."""
        match = self._NAME.match(text, position)
        if match is None:
            values, end = _json_at(text, _skip(text, position))
            values = values if isinstance(values, list) else [values]
            found = [_call_of(value, names, "arguments") for value in values]
        else:
            arguments, end = _json_at(text, _skip(text, match.end()))
            value = {"name": match[1], "arguments": arguments}
            found = [_call_of(value, names, "arguments")]
        calls = [call for call in found if call is not None]
        return (calls, end) if len(calls) == len(found) else ([], position)


#: By the name that a setting gives them.
FORMATS: Final[Mapping[str, ToolCallFormat]] = {
    "hermes": _HermesFormat(),
    "llama3_json": _Llama3JsonFormat(),
    "mistral": _MistralFormat(),
}


def detect_format(template: str) -> str | None:
    """The name of the format that a chat template teaches its model; None for one not known."""
    if "[TOOL_CALLS]" in template:
        return "mistral"
    # `<function=` is another spelling inside of the same tags, which is not JSON.
    if "<tool_call>" in template:
        return None if "<function=" in template else "hermes"
    if "<|python_tag|>" in template or re.search(r'"name\\?"\s*:.*"parameters\\?"\s*:', template):
        return "llama3_json"
    return None


def _find_marker(text: str, marker: str) -> int:
    """Where a marker begins, or may be beginning at the text's end; blanks before it belong."""
    start = text.find(marker)
    if start < 0:
        start = len(text)
        for length in range(min(len(marker) - 1, len(text)), 0, -1):
            if text.endswith(marker[:length]):
                start -= length
                break
    return len(text[:start].rstrip())


def _parsed(rest: list[str], calls: list[ParsedCall]) -> ParsedText:
    text = "".join(rest)
    # Blanks that follow the last call are no text.
    return ParsedText(text if rest[-1].strip() or not calls else text.rstrip(), calls)


def _call_of(value: Any, names: Set[str], *argument_keys: str) -> ParsedCall | None:
    """The call that a JSON value is, or None."""
    if not isinstance(value, dict):
        return None
    name = value.get("name")
    if not isinstance(name, str) or name not in names:
        return None
    for key in argument_keys:
        if isinstance(value.get(key), dict):
            try:
                arguments = json.dumps(value[key], ensure_ascii=False)
                arguments.encode()  # JSON can spell lone surrogates, which UTF-8 cannot hold
            except (RecursionError, UnicodeEncodeError):
                return None
            return ParsedCall(name, arguments)
    return None


def _refuse_constant(name: str) -> Any:
    raise ValueError(name)


_DECODER: Final = json.JSONDecoder(parse_constant=_refuse_constant)


def _json_at(text: str, position: int) -> tuple[Any, int]:
    """The JSON value at a place and where it ends; None and the place for none."""
    try:
        return _DECODER.raw_decode(text, position)
    except (ValueError, RecursionError):
        return None, position


def _skip(text: str, position: int, characters: str = _BLANKS) -> int:
    """The next place that holds none of some characters."""
    while position < len(text) and text[position] in characters:
        position += 1
    return position
