"""Reading calls in a text: JSON at a place, markers that may be cut, and what a call is."""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from typing import Any, Final, NamedTuple

#: White space of JSON.
BLANKS: Final = " \t\r\n"


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


def find_marker(text: str, marker: str) -> int:
    """Return the start of a marker, or of a partial one at the end; else the text's length."""
    start = text.find(marker)
    if start >= 0:
        return start
    for length in range(min(len(marker) - 1, len(text)), 0, -1):
        if text.endswith(marker[:length]):
            return len(text) - length
    return len(text)


def before_marker(text: str, marker: str) -> int:
    """Return the same, with the blanks before the marker."""
    return len(text[: find_marker(text, marker)].rstrip())


def parsed(rest: list[str], calls: list[ParsedCall]) -> ParsedText:
    """Return what was found, from the pieces of text around the calls."""
    text = "".join(rest)
    # Blanks after the last call do not belong to the text.
    return ParsedText(text if rest[-1].strip() or not calls else text.rstrip(), calls)


def calls_of(value: Any, names: Collection[str], *argument_keys: str) -> list[ParsedCall]:
    """Return the calls that a JSON value or a list of them describes; all of a list, or none."""
    values = value if isinstance(value, list) else [value]
    calls = [call_of(each, names, *argument_keys) for each in values]
    return [] if None in calls else [call for call in calls if call is not None]


def call_of(value: Any, names: Collection[str], *argument_keys: str) -> ParsedCall | None:
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


def json_at(text: str, position: int) -> tuple[Any, int]:
    """Return the JSON value at a position and its end; None and the position if there is none."""
    try:
        return _DECODER.raw_decode(text, position)
    except (ValueError, RecursionError):
        return None, position


def skip(text: str, position: int, characters: str = BLANKS) -> int:
    """Return the next position without one of some characters."""
    while position < len(text) and text[position] in characters:
        position += 1
    return position
