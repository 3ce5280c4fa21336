"""Output of commands: a line of JSON, or a table and times for people."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

#: Characters; wider than any table.
_UNBOUNDED = 100_000


def print_json(data: Any) -> None:
    """Write one JSON value as one line."""
    # Escape text that the terminal or pipe cannot encode, instead of failing.
    sys.stdout.write(json.dumps(data, ensure_ascii=not _is_utf8(sys.stdout.encoding)) + "\n")
    sys.stdout.flush()


def print_table(title: str, columns: Iterable[str], rows: Iterable[Iterable[object]]) -> None:
    """Write a table for people. No cell is cut: the first one is often an id to copy.

    A narrow terminal folds the other columns; a pipe or a file gets one line per row.
    """
    from rich.console import Console
    from rich.measure import Measurement
    from rich.table import Column, Table
    from rich.text import Text

    name, *others = columns
    table = Table(
        Column(name, no_wrap=True),
        *(Column(other, overflow="fold") for other in others),
        title=title,
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    for row in rows:
        table.add_row(*(Text(str(cell)) for cell in row))  # Text: cells are data, not markup
    console = Console()
    if not console.is_terminal:
        unbounded = console.options.update(width=_UNBOUNDED)
        console.width = max(console.width, Measurement.get(console, unbounded, table).maximum)
    console.print(table)


def format_time_ms(milliseconds: int | None) -> str:
    """Return a time of a record in words; `-` if there is none.

    Args:
        milliseconds: since the epoch.
    """
    if milliseconds is None:
        return "-"
    return f"{datetime.fromtimestamp(milliseconds / 1000, UTC):%Y-%m-%d %H:%M:%S} UTC"


def format_duration(seconds: float) -> str:
    """Return a duration as hours, minutes and seconds, such as `1:02:03`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"


def _is_utf8(encoding: str | None) -> bool:
    return (encoding or "").lower().replace("-", "") == "utf8"
