"""`ResultColumns`: the cells that a line's result fills, its JSON output flattened by a schema."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from batchmill.producer.files.table import Column
from batchmill.producer.vector_sections import decode_rows

from .explain_columns import explain_cells, explain_columns

#: Objects in objects that become columns; a schema may refer to itself.
_MAX_DEPTH = 8
#: Before a name that a column of the input has already.
_PREFIX = "output."
_KINDS = {"string": "text", "integer": "integer", "number": "number", "boolean": "flag"}


@dataclass(frozen=True, slots=True)
class ResultColumns:
    """The columns of one prompt.

    Attributes:
        name: of the prompt; empty if there is only one.
        num_samples: columns for texts.
        properties: path and kind of each value in a JSON output; empty without a schema.
    """

    name: str
    num_samples: int
    properties: tuple[tuple[tuple[str, ...], str], ...] = ()
    #: Whether the result is a vector, which takes the place of the text.
    embeds: bool = False
    #: Parts of an explanation, each of which has columns.
    explained: tuple[str, ...] = ()
    #: Whether one of the samples is selected: its text has a column, and the values are its own.
    selects: bool = False

    def columns(self, taken: Collection[str]) -> list[Column]:
        """Return the columns.

        Args:
            taken: names of the input's columns; the same name here gets `output.` before it.
        """
        own = f"{self.name}." if self.name else ""
        text = self.name or ("embedding" if self.embeds else "text")
        columns = [Column(text, "vector" if self.embeds else "text")]
        columns += [Column(f"{text}_{place + 1}") for place in range(1, self.num_samples)]
        columns += [Column(f"{own}selected")] if self.selects else []
        columns += [Column(own + ".".join(path), kind) for path, kind in self.properties]
        columns += [Column(own + each.name, each.kind) for each in explain_columns(self.explained)]
        columns += [
            Column(f"{own}finish_reason"),
            Column(f"{own}prompt_tokens", "integer"),
            Column(f"{own}output_tokens", "integer"),
            Column(f"{own}error"),
        ]
        return unique_columns(columns, taken)

    def cells(self, line: Mapping[str, Any] | None) -> list[Any]:
        """Return the cells of a line of the output or the error file; None is an empty one."""
        line = line or {}
        body = (line.get("response") or {}).get("body") or line.get("partial") or {}
        choices: Sequence[Mapping[str, Any]] = body.get("choices") or ()
        texts: list[Any] = [_text(choice) for choice in choices[: self.num_samples]]
        if self.embeds:
            texts = [_vector(each["embedding"]) for each in body.get("data") or ()][:1]
        texts += [None] * (self.num_samples - len(texts))
        shown = self._shown(body, choices)
        text = None if shown is None else _text(shown)
        usage = body.get("usage") or {}
        error = line.get("error")
        return [
            *texts,
            *([text] if self.selects else []),
            *self._values(text),
            *explain_cells(self.explained, body.get("explain") or {}),
            None if shown is None else shown.get("finish_reason"),
            usage.get("prompt_tokens"),
            usage.get("completion_tokens"),
            f"{error['code']}: {error['message']}" if error else None,
        ]

    def _shown(
        self, body: Mapping[str, Any], choices: Sequence[Mapping[str, Any]]
    ) -> Mapping[str, Any] | None:
        """Return the sample whose values are shown: the selected one, or the first."""
        place = (body.get("selection") or {}).get("index") if self.selects else 0
        return None if place is None or place >= len(choices) else choices[place]

    def _values(self, text: str | None) -> list[Any]:
        """Return the values in a JSON output; None for each that is not there."""
        if not self.properties:
            return []
        try:
            data = json.loads(text or "null", parse_constant=_no_constant)
        except (ValueError, RecursionError):
            data = None  # cut by the limit of tokens, for example
        return [_typed(_value_at(data, path), kind) for path, kind in self.properties]


def unique_columns(columns: Iterable[Column], taken: Collection[str]) -> list[Column]:
    """Return columns whose names are not taken: those that are get `output.` before them."""
    names: set[str] = set(taken)
    unique = []
    for column in columns:
        name = column.name
        while name in names:
            name = _PREFIX + name
        names.add(name)
        unique.append(Column(name, column.kind))
    return unique


def schema_properties(
    response_format: Any,
) -> tuple[tuple[tuple[str, ...], str], ...]:
    """Return the path and kind of each value that a response format asks for.

    Args:
        response_format: OpenAI's; only a `json_schema` of an object has any.
    """
    if not isinstance(response_format, dict):
        return ()
    schema = (response_format.get("json_schema") or {}).get("schema")
    return tuple(_properties(schema, ())) if isinstance(schema, dict) else ()


def _properties(
    schema: Mapping[str, Any], path: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], str]]:
    properties = schema.get("properties")
    if not isinstance(properties, dict) or len(path) >= _MAX_DEPTH:
        return
    for name, inner in properties.items():
        inner = inner if isinstance(inner, dict) else {}
        deeper = list(_properties(inner, (*path, name)))
        if deeper:
            yield from deeper
        else:
            yield (*path, name), _KINDS.get(str(inner.get("type")), "text")


def _no_constant(_: str) -> None:
    """Stand for NaN and Infinity, which are not JSON."""


def _value_at(data: Any, path: Sequence[str]) -> Any:
    for name in path:
        if not isinstance(data, dict):
            return None
        data = data.get(name)
    return data


def _typed(value: Any, kind: str) -> Any:
    """Return a value if it is of its column's kind, which the schema promised."""
    if value is None or kind == "text":
        return value
    if kind == "flag" or isinstance(value, bool):
        return value if kind == "flag" and isinstance(value, bool) else None
    is_number = isinstance(value, int) or (kind == "number" and isinstance(value, float))
    return value if is_number else None


def _vector(value: list[float] | str) -> list[float]:
    """Return the numbers of a vector, which its line may hold as base64."""
    return decode_rows(value, 1)[0] if isinstance(value, str) else value


def _text(choice: Mapping[str, Any]) -> str | None:
    if "text" in choice:
        return str(choice["text"])
    message = choice.get("message") or {}
    content, calls = message.get("content"), message.get("tool_calls")
    if content is None and calls:
        return json.dumps(calls, ensure_ascii=False)
    return None if content is None else str(content)
