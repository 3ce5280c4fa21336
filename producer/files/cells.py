"""Values of typed tables (Parquet, Excel) as the values of JSON, which templates take."""

from __future__ import annotations

import datetime
import decimal
import math
from typing import Any


def plain_value(name: str | None, value: Any) -> Any:
    """Return a cell's value as JSON has it; an empty cell is an empty text.

    Args:
        name: of the column, for the error.
        value: as the library read it.

    Raises:
        ValueError: it is binary, or a number that JSON does not have.
    """
    match value:
        case None:
            return ""
        case bool() | int() | str():
            return value
        case float():
            if not math.isfinite(value):
                raise ValueError(f"column {name!r} is {value}, which is not a number")
            return int(value) if value.is_integer() and abs(value) < 2**53 else value
        case decimal.Decimal():
            return str(value)
        case datetime.datetime():
            is_day = value.time() == datetime.time() and value.tzinfo is None
            return value.date().isoformat() if is_day else value.isoformat()
        case datetime.date() | datetime.time():
            return value.isoformat()
        case list() | tuple():
            return [plain_value(name, item) for item in value]
        case dict():
            return {str(key): plain_value(name, item) for key, item in value.items()}
        case bytes():
            raise ValueError(f"column {name!r} is binary; the template takes text or numbers")
        case _:
            return str(value)


def encodable(value: Any) -> Any:
    """Return a cell with its lone surrogates escaped: JSON can hold them, and UTF-8 cannot."""
    if isinstance(value, str):
        return value.encode(errors="backslashreplace").decode()
    if isinstance(value, list):
        return [encodable(each) for each in value]
    if isinstance(value, dict):
        return {encodable(name): encodable(each) for name, each in value.items()}
    return value
