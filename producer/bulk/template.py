"""`PromptTemplate`: text with the names of columns in braces."""

from __future__ import annotations

import string
from collections.abc import Mapping
from typing import Any

from batchmill.producer.errors import BulkFileError


class PromptTemplate:
    """Fills `{column}` from a row; `{{` and `}}` are braces. Nothing else is evaluated."""

    def __init__(self, text: str) -> None:
        """Parse a template.

        Raises:
            BulkFileError: a brace stands alone, or holds more than a name.
        """
        self._parts: list[tuple[str, str | None]] = []
        try:
            parts = list(string.Formatter().parse(text))
        except ValueError as error:
            raise BulkFileError(
                f"the template is invalid: {error}; write {{{{ for a brace"
            ) from None
        for literal, name, form, conversion in parts:
            # str.format would evaluate attributes and formats: a template is data, not a program.
            if name is not None and (not name or form or conversion):
                raise BulkFileError(
                    "braces in the template must hold a plain column name; write {{ for a brace"
                )
            self._parts.append((literal, name))

    @property
    def columns(self) -> list[str]:
        """The columns that it uses, each once."""
        return list(dict.fromkeys(name for _, name in self._parts if name is not None))

    def fill(self, row: Mapping[str, Any]) -> str:
        """Return the prompt for a row.

        Raises:
            ValueError: the row lacks a column, or holds something that is not text or a number.
        """
        return "".join(
            literal + ("" if name is None else _cell(row, name)) for literal, name in self._parts
        )


def _cell(row: Mapping[str, Any], name: str) -> str:
    if name not in row:
        raise ValueError(f"the row has no column {name!r}, which the template uses")
    value = row[name]
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return str(value)
    raise ValueError(
        f"column {name!r} is {type(value).__name__}; the template takes text or numbers"
    )
