"""Tool calls in an output, and the formats in which model families write them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, Protocol

#: White space of JSON.
_BLANKS: Final = " \t\r\n"


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call of a function."""

    #: A function of the prompt, the seed and the place of the call in the output.
    id: str
    name: str
    #: A JSON object, as text.
    arguments: str


class ParsedCall(NamedTuple):
    """A call that was read from a text."""

    name: str
    #: A JSON object, as text.
    arguments: str


class ParsedText(NamedTuple):
    """A text, and the calls that were removed from it."""

    #: Everything outside of calls, without the blanks before a call.
    text: str
    calls: list[ParsedCall]


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

    def parse(self, text: str, names: Set[str]) -> ParsedText:
        """Remove the calls of some functions from a text. Never raises."""


class _HermesFormat:
    """`<tool_call>{"name": …, "arguments": {…}}</tool_call>` for each call.

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
            # The last one may have no closing tag: a model may end its turn with the object.
            if call is not None and (end == len(text) or text.startswith(closing, end)):
                rest.append(text[position:start].rstrip())
                calls.append(call)
                position = end = min(end + len(closing), len(text))
            start = text.find(opening, max(end, start + len(opening)))
        return _parsed([*rest, text[position:]], calls)


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
        return _find_marker(text, self.markers[0])

    def parse(self, text: str, names: Set[str]) -> ParsedText:
        before, marker, after = text.partition(self.markers[0])
        if not marker or self._CALL.match(before):
            before, after = "", text
        calls: list[ParsedCall] = []
        position = 0
        while True:
            value, end = _json_at(after, _skip(after, position, _BLANKS + ";" * bool(calls)))
            found = _calls_of(value, names, "parameters", "arguments")
            if not found:
                break
            calls += found
            position = end
        if not calls:
            return ParsedText(text, [])
        return _parsed([before.rstrip(), after[position:]], calls)


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
        """Return the calls directly after a marker, and their end; all of a list, or none."""
        match = self._NAME.match(text, position)
        if match is None:
            value, end = _json_at(text, _skip(text, position))
        else:
            arguments, end = _json_at(text, _skip(text, match.end()))
            value = {"name": match[1], "arguments": arguments}
        calls = _calls_of(value, names, "arguments")
        return (calls, end) if calls else ([], position)


#: Format by the name that the setting `tool_call_parser` uses.
FORMATS: Final[Mapping[str, ToolCallFormat]] = {
    "hermes": _HermesFormat(),
    "llama3_json": _Llama3JsonFormat(),
    "mistral": _MistralFormat(),
}


def detect_format(template: str) -> str | None:
    """Return the name of the format that a chat template uses; None if it is unknown."""
    if "[TOOL_CALLS]" in template:
        return "mistral"
    # `<function=` is another format inside of the same tags, which is not JSON.
    if "<tool_call>" in template:
        return None if "<function=" in template else "hermes"
    if "<|python_tag|>" in template or re.search(r'"name\\?"\s*:.*"parameters\\?"\s*:', template):
        return "llama3_json"
    return None


def find_marker(text: str, marker: str) -> int:
    """Return the start of a marker, or of a partial one at the end; else the text's length."""
    start = text.find(marker)
    if start >= 0:
        return start
    for length in range(min(len(marker) - 1, len(text)), 0, -1):
        if text.endswith(marker[:length]):
            return len(text) - length
    return len(text)


def _find_marker(text: str, marker: str) -> int:
    """Return the same, with the blanks before the marker."""
    return len(text[: find_marker(text, marker)].rstrip())


def _parsed(rest: list[str], calls: list[ParsedCall]) -> ParsedText:
    text = "".join(rest)
    # Blanks after the last call do not belong to the text.
    return ParsedText(text if rest[-1].strip() or not calls else text.rstrip(), calls)


def _calls_of(value: Any, names: Set[str], *argument_keys: str) -> list[ParsedCall]:
    """Return the calls that a JSON value or a list of them describes; all of a list, or none."""
    values = value if isinstance(value, list) else [value]
    calls = [_call_of(each, names, *argument_keys) for each in values]
    return [] if None in calls else [call for call in calls if call is not None]


def _call_of(value: Any, names: Set[str], *argument_keys: str) -> ParsedCall | None:
    """Return the call that a JSON value describes, or None."""
    if not isinstance(value, dict):
        return None
    name = value.get("name")
    if not isinstance(name, str) or name not in names:
        return None
    for key in argument_keys:
        if isinstance(value.get(key), dict):
            try:
                arguments = json.dumps(value[key], ensure_ascii=False)
                arguments.encode()  # JSON can escape lone surrogates, which UTF-8 cannot encode
            except (RecursionError, UnicodeEncodeError):
                return None
            return ParsedCall(name, arguments)
    return None


def _refuse_constant(name: str) -> Any:
    raise ValueError(name)


def _finite(digits: str) -> float:
    """Return a number; one like 1e400 would be written as Infinity, which is not JSON."""
    number = float(digits)
    if math.isinf(number):
        raise ValueError(digits)
    return number


_DECODER: Final = json.JSONDecoder(parse_constant=_refuse_constant, parse_float=_finite)


def _json_at(text: str, position: int) -> tuple[Any, int]:
    """Return the JSON value at a position and its end; None and the position if there is none."""
    try:
        return _DECODER.raw_decode(text, position)
    except (ValueError, RecursionError):
        return None, position


def _skip(text: str, position: int, characters: str = _BLANKS) -> int:
    """Return the next position without one of some characters."""
    while position < len(text) and text[position] in characters:
        position += 1
    return position
