"""Formats of calls between an opening and a closing tag: arguments as JSON, or tag by tag."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

from .call_reading import (
    ParsedCall,
    ParsedText,
    before_marker,
    call_of,
    calls_of,
    json_at,
    parsed,
    skip,
)

#: Most alternatives of an argument's schema whose types are looked at; further ones are text.
_MAX_CHOICES: Final = 100


class _BetweenTags:
    """Finds the sections between two tags; a subclass reads the calls in them."""

    id_length = 24

    def __init__(self, opening: str, closing: str = "", *, inner: tuple[str, ...] = ()) -> None:
        """Set the texts of the format.

        Args:
            opening: Text before the calls.
            closing: Text after them; the output may end without it.
            inner: Further texts of the format that may be special tokens.
        """
        self.markers = tuple(marker for marker in (opening, closing, *inner) if marker)
        self._opening, self._closing = opening, closing

    def find_start(self, text: str, *, is_beginning: bool) -> int:
        """Return how many leading characters cannot belong to a call."""
        return before_marker(text, self._opening)

    def parse(self, text: str, names: Collection[str]) -> ParsedText:
        """Remove the calls of some functions from a text."""
        rest: list[str] = []
        calls: list[ParsedCall] = []
        position = 0
        start = text.find(self._opening)
        while start >= 0:
            found, end = self._calls_at(text, start + len(self._opening), names)
            end = skip(text, end)
            is_closed = not self._closing or end == len(text) or text.startswith(self._closing, end)
            if found and is_closed:
                rest.append(text[position:start].rstrip())
                calls += found
                position = end = min(end + len(self._closing), len(text))
            start = text.find(self._opening, max(end, start + len(self._opening)))
        return parsed([*rest, text[position:]], calls)

    def _calls_at(
        self, text: str, position: int, names: Collection[str]
    ) -> tuple[list[ParsedCall], int]:
        """Return all calls of a section and their end; none if one is malformed."""
        raise NotImplementedError


class ListInJson(_BetweenTags):
    """A JSON list of calls, each with `name` and `arguments`, or a single one, after a tag."""

    def _calls_at(
        self, text: str, position: int, names: Collection[str]
    ) -> tuple[list[ParsedCall], int]:
        value, end = json_at(text, skip(text, position))
        return calls_of(value, names, "arguments", "parameters"), end


class ArgumentsInJson(_BetweenTags):
    """Calls with a name between tags, and a JSON object after it."""

    def __init__(
        self, opening: str, closing: str, *, before: str, after: str, inner: tuple[str, ...]
    ) -> None:
        """Set the texts of the format.

        Args:
            opening: Text before the calls.
            closing: Text after them.
            before: Pattern of the text before a call's arguments; its group is the name.
            after: Pattern of the text after them.
            inner: Further texts of the format that may be special tokens.
        """
        super().__init__(opening, closing, inner=inner)
        self._before, self._after = re.compile(before), re.compile(after)

    def _calls_at(
        self, text: str, position: int, names: Collection[str]
    ) -> tuple[list[ParsedCall], int]:
        calls: list[ParsedCall] = []
        while (head := self._before.match(text, position)) is not None:
            arguments, end = json_at(text, head.end())
            call = call_of({"name": head[1], "arguments": arguments}, names, "arguments")
            tail = self._after.match(text, end)
            if call is None or (tail is None and text[end:].strip()):
                return [], position
            calls.append(call)
            position = len(text) if tail is None else tail.end()
        return calls, position


class ArgumentsInTags(_BetweenTags):
    """A call in a section, each of its arguments between tags. The schema says a value's type."""

    def __init__(
        self,
        opening: str,
        closing: str,
        *,
        before: str,
        argument: str,
        argument_end: str,
        after: str,
    ) -> None:
        """Set the texts of the format.

        Args:
            opening: Text before each call, or before all of them.
            closing: Text after it.
            before: Pattern of the text before a call's arguments; its group is the name.
            argument: Pattern of the text before an argument's value; its group is the name.
            argument_end: Text after the value; a line end that it begins with may be missing.
            after: Pattern of the text after the arguments of a call.
        """
        super().__init__(opening, closing)
        self._before, self._after = re.compile(before), re.compile(after)
        self._argument = re.compile(argument)
        self._argument_end = argument_end.lstrip()
        self._ends_line = argument_end != self._argument_end

    def _calls_at(
        self, text: str, position: int, names: Collection[str]
    ) -> tuple[list[ParsedCall], int]:
        calls: list[ParsedCall] = []
        while (head := self._before.match(text, position)) is not None:
            arguments, end = self._arguments_at(text, head.end(), properties_of(names, head[1]))
            call = call_of({"name": head[1], "arguments": arguments}, names, "arguments")
            tail = self._after.match(text, end)
            if call is None or tail is None:
                # Nothing before `end` is read again: a long output must not take quadratic time.
                return [], end
            calls.append(call)
            position = tail.end()
            if text.startswith(self._closing, position):
                break
        return calls, position

    def _arguments_at(
        self, text: str, position: int, properties: Mapping[str, Any]
    ) -> tuple[dict[str, Any], int]:
        """Return the complete arguments from a position on, and their end.

        The rest of the text is part of an argument that does not end.
        """
        arguments: dict[str, Any] = {}
        while (start := self._argument.match(text, position)) is not None:
            end = text.find(self._argument_end, start.end())
            if end < 0:
                return arguments, len(text)
            value = text[start.end() : end]
            if self._ends_line:
                value = value.removesuffix("\n")
            arguments[start[1]] = argument_of_type(value, properties.get(start[1]))
            position = skip(text, end + len(self._argument_end))
        return arguments, position


def properties_of(names: Collection[str], name: str) -> Mapping[str, Any]:
    """Return the schemas of a function's arguments; empty if they are not known."""
    schema = names.get(name) if isinstance(names, Mapping) else None
    properties = schema.get("properties") if isinstance(schema, Mapping) else None
    return properties if isinstance(properties, Mapping) else {}


def argument_of_type(text: str, schema: Any) -> Any:
    """Return a value with the first type of its schema that it has; else the text itself."""
    for kind in _kinds(schema):
        value = _of_kind(text, kind)
        if value is not _NOT_OF_KIND:
            return value
    return text


def _kinds(schema: Any) -> list[str]:
    """Return the types that a schema names, also in its choices; nothing else of it is read."""
    found: list[str] = []
    pending, num_seen = [schema], 0
    while pending and num_seen < _MAX_CHOICES:
        each = pending.pop(0)
        num_seen += 1
        if not isinstance(each, Mapping):
            continue
        kinds = each.get("type")
        found += [kind for kind in _items(kinds) or [kinds] if isinstance(kind, str)]
        pending += [*_items(each.get("anyOf")), *_items(each.get("oneOf"))]
    return found


def _items(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else ()


_NOT_OF_KIND = object()


def _of_kind(text: str, kind: str) -> Any:
    stripped = text.strip()
    if kind == "boolean":
        return {"true": True, "false": False}.get(stripped.lower(), _NOT_OF_KIND)
    if kind == "null":
        return None if stripped in ("null", "None") else _NOT_OF_KIND
    if kind == "string":
        return text
    value, end = json_at(stripped, 0)
    if end == 0 or end < len(stripped):
        return _NOT_OF_KIND
    if kind in ("integer", "number"):
        return _number(value, is_integer=kind == "integer")
    fits = isinstance(value, {"object": dict, "array": list}.get(kind, ()))
    return value if fits else _NOT_OF_KIND


def _number(value: Any, *, is_integer: bool) -> Any:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return _NOT_OF_KIND
    if not is_integer or isinstance(value, int):
        return value
    return int(value) if value.is_integer() else _NOT_OF_KIND
