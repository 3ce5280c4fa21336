"""Output of commands: a line of JSON, or a table and times for people."""

from __future__ import annotations

import errno
import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Self, TextIO

if TYPE_CHECKING:
    from rich.live import Live
    from rich.table import Table

#: Characters; wider than any table.
_UNBOUNDED = 100_000
#: Characters of a table with sentences, in a pipe or a file.
_SENTENCES_WIDTH = 120


@contextmanager
def may_lose_terminal() -> Iterator[None]:
    """Let a program go on if its terminal, or the reader of its output, is gone.

    A closed terminal makes every write an error (EIO), a reader that has ended another (EPIPE).
    What the program writes from then on is dropped, so that it can still stop its children.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EIO, errno.EPIPE):
            raise
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:
                _discard(stream)


def discard_output() -> None:
    """Drop what this process still writes: nobody reads its output any more."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # no file behind it, or closed
            _discard(stream)


def escape_unencodable_text() -> None:
    """Write characters that the terminal or pipe cannot encode as escapes, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and not _is_utf8(stream.encoding):
            stream.reconfigure(errors="backslashreplace")


def _discard(stream: TextIO) -> None:
    """Lead a stream to nowhere, also what Python flushes at its exit."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


class ChangingLine:
    """One line that is rewritten on a terminal; elsewhere a line per change."""

    def __init__(self, say: Callable[[str], None], *, in_place: bool) -> None:
        """Bind to stdout.

        Args:
            say: writes a line where stdout is not a terminal.
            in_place: rewrite the line if stdout is a terminal.
        """
        self._say = say
        self._in_place = in_place and sys.stdout.isatty()
        self._live: Live | None = None
        self._shown = ""

    def __enter__(self) -> Self:
        if self._in_place:
            from rich.live import Live

            # Without auto-refresh there is no extra thread while children are started.
            self._live = Live(auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            with may_lose_terminal():
                self._live.stop()

    def show(self, text: str, detailed: str) -> None:
        """Show a line.

        Args:
            text: for a pipe or a file; written if it has changed.
            detailed: for a terminal, with what changes all the time, such as seconds.
        """
        if self._live is not None:
            from rich.text import Text

            with may_lose_terminal():
                line = Text(detailed, no_wrap=True, overflow="ellipsis")
                self._live.update(line, refresh=True)
        elif text != self._shown:
            self._shown = text
            self._say(text)


def print_json(data: Any) -> None:
    """Write one JSON value as one line."""
    # Escape text that the terminal or pipe cannot encode, instead of failing.
    sys.stdout.write(json.dumps(data, ensure_ascii=not _is_utf8(sys.stdout.encoding)) + "\n")
    sys.stdout.flush()


def print_table(
    title: str,
    columns: Iterable[str],
    rows: Iterable[Iterable[object]],
    *,
    has_sentences: bool = False,
) -> None:
    """Write a table for people. No cell is cut: the first one is often an id to copy.

    A narrow terminal folds the other columns; a pipe or a file gets one line per row, unless cells
    hold sentences: those are folded there too.
    """
    from rich.console import Console
    from rich.measure import Measurement

    table = make_table(title, columns, rows)
    console = Console()
    if console.is_terminal:
        console.print(table)
        return
    width = _SENTENCES_WIDTH
    if not has_sentences:
        unbounded = console.options.update(width=_UNBOUNDED)
        width = Measurement.get(console, unbounded, table).maximum
    console.width = max(console.width, width)
    with console.capture() as written:
        console.print(table)
    for line in written.get().splitlines():
        print(line.rstrip())  # rich fills each line up to the width of the table


def make_table(title: str, columns: Iterable[str], rows: Iterable[Iterable[object]]) -> Table:
    """Return a table for people, as `print_table` writes it."""
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
    return table


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
