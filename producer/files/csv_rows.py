"""`CsvReader`: rows of a table in text, with the delimiter and the encoding found or given."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from batchmill.producer.errors import BulkFileError

from .record import InputOptions, Record
from .text_encoding import find_encoding, given_encoding, open_text

#: The largest cell of a CSV file, in characters.
MAX_CELL_CHARS = 4 << 20
#: The first is taken if several fit.
_DELIMITERS = (",", ";", "\t", "|")
_NAMES = {",": "comma", ";": "semicolon", "\t": "tab", "|": "|"}
_NUM_SAMPLE_ROWS = 50
_NUM_SAMPLE_CHARS = 256 << 10


@dataclass(frozen=True, slots=True)
class Dialect:
    """The format of a CSV file.

    Attributes:
        delimiter: between cells.
        encoding: Python's name.
        suits_excel: whether the file seems to come from Excel.
        num_skipped: first lines that are no rows: `sep=;`, which Excel knows.
    """

    delimiter: str
    encoding: str
    suits_excel: bool
    num_skipped: int = 0


class CsvReader:
    """Reads rows; the first one names the columns. Lines without any cell are skipped."""

    def __init__(self, path: Path, options: InputOptions, usual_delimiter: str = ",") -> None:
        """Find the dialect.

        Raises:
            BulkFileError: the encoding cannot be found, or the columns have no names.
        """
        self._path = path
        self._keep_bad_rows = options.keep_bad_rows
        encoding = find_encoding(path) if options.encoding is None else None
        encoding = encoding or given_encoding(str(options.encoding))
        delimiter, num_skipped = self._delimiter(encoding.name, options.delimiter, usual_delimiter)
        suits_excel = encoding.suits_excel or delimiter == ";"
        self.dialect = Dialect(delimiter, encoding.name, suits_excel, num_skipped)
        notes = [encoding.note] if encoding.note else []
        if options.delimiter is None and delimiter != usual_delimiter:
            notes.append(f"{path} is read with the delimiter {_NAMES[delimiter]}")
        self.notes = tuple(notes)
        self._columns = self._read_columns()

    def columns(self) -> list[str]:
        """Return the names in the first row."""
        return self._columns

    def count(self) -> int:
        """Return the number of rows below the first.

        Raises:
            BulkFileError: a row is not CSV, or has another number of cells than the first row.
        """
        num_rows = num_bad = 0
        first_bad = ""
        for line, row in self._rows():
            num_rows += 1
            if len(self._cells(row)) != len(self._columns):
                num_bad += 1
                first_bad = first_bad or f"line {line}: {self._problem(row)}"
        if num_bad and not self._keep_bad_rows:
            others = f" (and {num_bad - 1} more such rows)" if num_bad > 1 else ""
            raise BulkFileError(
                f"{self._path}, {first_bad}{others}; mend the file, give --delimiter if "
                f"{_NAMES.get(self.dialect.delimiter, self.dialect.delimiter)!r} is wrong, or send "
                "such rows to the error file with --skip-bad-rows"
            )
        return num_rows

    def records(self) -> Iterator[Record]:
        """Yield the rows below the first; `line` counts rows, the first included."""
        for number, (_, row) in enumerate(self._rows(), start=1):
            cells = self._cells(row)
            if len(cells) == len(self._columns):
                data = dict(zip(self._columns, cells, strict=True))
                yield Record(number, number + 1, data)
            else:
                yield Record(number, number + 1, None, self._problem(row))

    def _cells(self, row: list[str]) -> list[str]:
        """Return a row without the empty cells that spreadsheets add at its end."""
        num_columns = len(self._columns)
        return row if any(row[num_columns:]) else row[:num_columns]

    def _problem(self, row: list[str]) -> str:
        return f"the row has {len(row)} cells, the first row names {len(self._columns)} columns"

    def _read_columns(self) -> list[str]:
        header = next((row for _, row in self._all_rows()), [])
        while header and not header[-1]:
            header.pop()
        if len(set(header)) < len(header) or "" in header:
            raise BulkFileError(
                f"{self._path}: the first row must name each column, each name once"
            )
        return header

    def _rows(self) -> Iterator[tuple[int, list[str]]]:
        rows = self._all_rows()
        next(rows, None)
        yield from rows

    def _all_rows(self) -> Iterator[tuple[int, list[str]]]:
        """Yield the rows with any cell, and the line where each begins."""
        with open_text(self._path, self.dialect.encoding) as file:
            for _ in range(self.dialect.num_skipped):
                file.readline()
            csv.field_size_limit(MAX_CELL_CHARS)
            reader = csv.reader(file, delimiter=self.dialect.delimiter, strict=True)
            while True:
                line = reader.line_num + 1 + self.dialect.num_skipped
                try:
                    row = next(reader)
                except StopIteration:
                    return
                except csv.Error as error:
                    # The reader has lost its place: the following rows would be garbage.
                    raise BulkFileError(f"{self._path}, line {line}: {_reason(error)}") from None
                if any(row):
                    yield line, row

    def _delimiter(self, encoding: str, given: str | None, usual: str) -> tuple[str, int]:
        """Return the delimiter, and how many lines before the first row only name it."""
        with open_text(self._path, encoding) as file:
            sample = file.read(_NUM_SAMPLE_CHARS)
        declared = sample.partition("\n")[0].rstrip("\r")
        num_skipped = 1 if len(declared) == 5 and declared.lower().startswith("sep=") else 0
        if given is not None:
            return given, num_skipped
        if num_skipped:
            return declared[4], 1
        return _best_delimiter(sample, usual), 0


def _best_delimiter(sample: str, usual: str) -> str:
    """Return the delimiter that cuts all rows into the same number of cells, the most of them."""
    best, best_score = usual, (False, 1)
    for delimiter in sorted(_DELIMITERS, key=lambda each: each != usual):
        counts = _cell_counts(sample, delimiter)
        if counts and counts[0] > 1:
            score = (all(count == counts[0] for count in counts), counts[0])
            if score > best_score:
                best, best_score = delimiter, score
    return best


def _cell_counts(sample: str, delimiter: str) -> list[int]:
    """Return the number of cells per row of a sample, whose last row may be cut."""
    lines = sample.splitlines(keepends=True)
    if len(sample) == _NUM_SAMPLE_CHARS:
        lines = lines[:-1]
    counts: list[int] = []
    try:
        for row in csv.reader(lines, delimiter=delimiter):
            if any(row):
                counts.append(len(row))
            if len(counts) == _NUM_SAMPLE_ROWS:
                break
    except csv.Error:
        return counts
    return counts


def _reason(error: csv.Error) -> str:
    text = str(error)
    if "unexpected end of data" in text:
        return (
            "not CSV: a quote opens in the row that begins here and never closes, so it takes in "
            "the rest of the file; close it, or double it"
        )
    if "expected after" in text:
        return (
            "not CSV: in the row that begins here, text follows a closing quote; double the quotes "
            'inside of a quoted cell (""), or look for a quote that is not closed'
        )
    if "field larger than" in text:
        return (
            f"a cell in the row that begins here has more than {MAX_CELL_CHARS} characters; "
            "shorten it, or look for a quote that is not closed"
        )
    return f"not CSV: {text}"
