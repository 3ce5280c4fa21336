"""`Record`, one record of an input file, and `InputOptions`, which say how the file is read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

#: A prompt of the largest size fits, even with every byte escaped.
MAX_LINE_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Record:
    """One record of the input.

    Attributes:
        number: its place among the records, from 1. Empty lines do not count.
        line: its line in the file (JSON lines), or its row (tables), from 1.
        data: its fields; None if it cannot be read.
        problem: why it cannot be read.
    """

    number: int
    line: int
    data: dict[str, Any] | None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class InputOptions:
    """How an input file is read; None is found out."""

    #: `csv`, `tsv`, `jsonl`, `json`, `parquet` or `xlsx`.
    format: str | None = None
    #: One character between the cells of a CSV file.
    delimiter: str | None = None
    #: Python's name of the encoding of a text file.
    encoding: str | None = None
    #: The sheet of a spreadsheet; None is the first.
    sheet: str | None = None
    #: Yield rows of a wrong length with their problem; else they make the file invalid.
    keep_bad_rows: bool = False

    @property
    def content(self) -> dict[str, str]:
        """The options that change what is read, for the identity of a run."""
        options = {
            "format": self.format,
            "delimiter": self.delimiter,
            "encoding": self.encoding,
            "sheet": self.sheet,
        }
        return {name: value for name, value in options.items() if value is not None}


class Reader(Protocol):
    """Reads the records of one format. Every iteration reads the file again."""

    #: What was guessed about the file, in sentences.
    notes: tuple[str, ...]

    def columns(self) -> list[str] | None:
        """Return the columns of a table, in order; None if the format names none."""

    def count(self) -> int:
        """Return how many records the file holds, after checking all of it.

        Raises:
            BulkFileError: the file as a whole cannot be read.
        """

    def records(self) -> Iterator[Record]:
        """Yield the records, in order; one that cannot be read has a problem."""
