"""The columns of rows that are JSON objects or typed cells, and the kind of each."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .record import Record
from .table import Column

_MAX_INTEGER = 2**63


def columns_of(records: Iterable[Record], names: Iterable[str] = ()) -> list[Column]:
    """Return the columns of all records, in order of appearance.

    Args:
        records: of one file.
        names: columns that are known before; they come first.
    """
    kinds: dict[str, str | None] = dict.fromkeys(names)
    for record in records:
        for name, value in (record.data or {}).items():
            kinds[name] = _joined(kinds.get(name), value)
    return [Column(name, kind or "text") for name, kind in kinds.items()]


def _joined(kind: str | None, value: Any) -> str | None:
    """Return the kind that holds the values so far and another one; None if all are empty."""
    if value is None or value == "":
        return kind
    own = "text"
    if isinstance(value, bool):
        own = "flag"
    elif isinstance(value, int) and abs(value) < _MAX_INTEGER:
        own = "integer"
    elif isinstance(value, float):
        own = "number"
    if kind is None or kind == own:
        return own
    return "number" if {kind, own} == {"integer", "number"} else "text"
