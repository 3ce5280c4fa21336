"""The `response_template` of a tokenizer: how its model marks thoughts and writes calls.

transformers loads it and reads the contents of its fields; where a field begins in a growing output
is found here, so that text is shown as soon as it is certain, and a malformed call stays text.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from transformers.utils.chat_parsing.content_parsers import process_field
from transformers.utils.chat_parsing.response_templates import (
    ResponseTemplateField,
    load_response_template,
)

from .call_reading import ParsedCall, ParsedText, call_of, json_at, parsed
from .tagged_calls import argument_of_type, properties_of
from .tool_calls import ToolCallFormat

#: Names that templates give to the field of thoughts; the first two are in transformers' own.
_THOUGHT_FIELDS: Final = ("thinking", "reasoning_content", "reasoning")
_CALL_FIELD: Final = "tool_calls"
#: For one search of a pattern, which comes with the model.
_SEARCH_S: Final = 0.5


class UnusableTemplate(ValueError):
    """A response template that cannot be followed; the message says why."""


@dataclass(frozen=True, slots=True)
class ResponseFormat:
    """What a response template says."""

    #: The end of a thought by its beginning; empty if the template has no thoughts.
    thoughts: Mapping[str, str]
    #: None if the template has no calls.
    calls: ToolCallFormat | None


def read_response_template(
    template: Mapping[str, Any], special_texts: Collection[str]
) -> ResponseFormat:
    """Return what a response template says about thoughts and calls.

    Args:
        template: As in `tokenizer_config.json`.
        special_texts: Special tokens, of which the format may need some.

    Raises:
        UnusableTemplate: transformers refuses it, thoughts have no literal beginning and end, or
            the text of an answer is marked as well.
    """
    try:
        loaded = load_response_template(dict(template))
    except Exception as error:  # the file comes with the model, and may hold anything
        raise UnusableTemplate(str(error)) from None
    fields = dict(loaded.fields)
    if loaded.implicit is None:
        raise UnusableTemplate("the text of an answer has marks of its own")
    del fields[loaded.implicit]
    calls = fields.pop(_CALL_FIELD, None)
    thoughts: dict[str, str] = {}
    for name in _THOUGHT_FIELDS:
        if (field := fields.pop(name, None)) is not None:
            thoughts |= _thoughts_of(field)
    if fields:
        raise UnusableTemplate(f"its field {min(fields)!r} is neither of thoughts nor of calls")
    form = None
    if calls is not None:
        texts = list(_texts_in(template["fields"][_CALL_FIELD]))
        form = TemplateCalls(calls, [each for each in special_texts if _is_in(each, texts)])
    return ResponseFormat(thoughts, form)


class TemplateCalls:
    """The calls of a response template.

    A call that transformers could not read, or whose function was not offered, stays in the text.
    """

    id_length = 24

    def __init__(self, field: ResponseTemplateField, markers: Collection[str]) -> None:
        """Bind to the field.

        Args:
            field: As transformers has loaded it.
            markers: The special tokens that its patterns may need.
        """
        self.markers = tuple(sorted(markers))
        self._field = field

    def find_start(self, text: str, *, is_beginning: bool) -> int:
        """Return how many leading characters cannot belong to a call."""
        found = _search(self._field.open_re, text, 0, partial=True)
        return len(text[: len(text) if found is None else found.start()].rstrip())

    def parse(self, text: str, names: Collection[str]) -> ParsedText:
        """Remove the calls of some functions from a text. Never raises."""
        rest: list[str] = []
        calls: list[ParsedCall] = []
        position = at = 0
        while (opened := _search(self._field.open_re, text, at)) is not None:
            body_end = end = len(text)
            if self._field.close_re is not None:
                closed = _search(self._field.close_re, text, opened.end())
                if closed is not None:
                    body_end, end = closed.span()
            found = self._calls_in(text[opened.end() : body_end], opened.groupdict(), names)
            if found:
                rest.append(text[position : opened.start()].rstrip())
                calls += found
                position = at = end
            else:
                at = max(opened.end(), opened.start() + 1)
        return parsed([*rest, text[position:]], calls)

    def _calls_in(
        self, body: str, captures: Mapping[str, str | None], names: Collection[str]
    ) -> list[ParsedCall]:
        """Return all calls of a section; none if one is malformed."""
        given = {name: text for name, text in captures.items() if text is not None}
        try:
            value = process_field(body, self._field, given)
        except (ValueError, KeyError, TypeError, RecursionError, TimeoutError):
            return []
        values = value if isinstance(value, list) else [value]
        calls = [_call(each, names) for each in values]
        return [] if None in calls else [call for call in calls if call is not None]


def _call(value: Any, names: Collection[str]) -> ParsedCall | None:
    function = value.get("function") if isinstance(value, dict) else None
    if not isinstance(function, dict):
        return None
    name, arguments = function.get("name"), function.get("arguments")
    if isinstance(arguments, str):
        arguments, _ = json_at(arguments, 0)
    if not isinstance(name, str) or not isinstance(arguments, dict):
        return None
    known = properties_of(names, name)
    typed = {
        key: argument_of_type(each, known[key]) if isinstance(each, str) and key in known else each
        for key, each in arguments.items()
    }
    try:
        json.dumps(typed, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return None
    return call_of({"name": name, "arguments": typed}, names, "arguments")


def _thoughts_of(field: ResponseTemplateField) -> dict[str, str]:
    """Return the ends of thoughts by their beginnings."""
    starts, ends = field.open_literals, field.close_literals
    if not starts or not ends or len(ends) > 1 or not all(map(str.strip, (*starts, *ends))):
        raise UnusableTemplate(
            f"its field {field.name!r} of thoughts must have literal beginnings and one literal end"
        )
    return {start.strip(): ends[0].strip() for start in starts}


def _texts_in(value: Any) -> Iterator[str]:
    """Yield the texts in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        for each in value.values() if isinstance(value, Mapping) else value:
            yield from _texts_in(each)


def _is_in(special: str, texts: Collection[str]) -> bool:
    """Return whether a special token is in a text, or in a pattern, where it is escaped."""
    return any(special in text or special in text.replace("\\", "") for text in texts)


def _search(pattern: Any, text: str, position: int, *, partial: bool = False) -> Any:
    """Return the next match of a pattern; None as well if it takes too long."""
    search: Callable[..., Any] = pattern.search
    try:
        return search(text, position, partial=partial, timeout=_SEARCH_S)
    except TimeoutError:
        return None
