"""`ExcelReader`: rows of one sheet of an Excel workbook (`.xlsx`), row by row."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import zip_longest
from pathlib import Path
from typing import Any

from batchmill.producer.errors import BulkFileError

from .cells import plain_value
from .extra import import_library
from .record import InputOptions, Record


class ExcelReader:
    """Reads rows; the first one that is not empty names the columns. Empty rows are skipped.

    A cell with a formula has the value that Excel stored last.
    """

    def __init__(self, path: Path, options: InputOptions) -> None:
        """Find the sheet and its columns.

        Raises:
            BulkFileError: openpyxl is not installed, or the workbook or the sheet does not exist.
        """
        self._path = path
        self._openpyxl = import_library("openpyxl", f"{path}, an Excel workbook,")
        self._sheet = options.sheet
        with self._workbook() as book:
            names = list(book.sheetnames)
        if self._sheet is not None and self._sheet not in names:
            raise BulkFileError(
                f"{path} has no sheet {self._sheet!r}; it has {', '.join(map(repr, names))}"
            )
        self._sheet = self._sheet or names[0]
        others = len(names) - 1
        self.notes: tuple[str, ...] = ()
        if options.sheet is None and others:
            self.notes = (
                f"{path}: the first of {len(names)} sheets is read, {self._sheet!r}; --sheet takes "
                "another",
            )
        self._columns = self._read_columns()

    def columns(self) -> list[str]:
        """Return the names in the first row."""
        return self._columns

    def count(self) -> int:
        """Return the number of rows below the first.

        Raises:
            BulkFileError: a row has cells beyond the named columns.
        """
        num_rows = 0
        for line, row in self._rows():
            num_rows += 1
            if len(row) > len(self._columns):
                raise BulkFileError(
                    f"{self._path}, row {line}: a cell stands beyond the {len(self._columns)} "
                    "columns that the first row names; name its column, or remove it"
                )
        return num_rows

    def records(self) -> Iterator[Record]:
        """Yield the rows below the first; `line` is Excel's row number."""
        for number, (line, row) in enumerate(self._rows(), start=1):
            try:
                cells = zip_longest(self._columns, row)
                data = {name: plain_value(name, value) for name, value in cells}
            except ValueError as error:
                yield Record(number, line, None, str(error))
            else:
                yield Record(number, line, data)

    def _read_columns(self) -> list[str]:
        header = next((row for _, row in self._all_rows()), ())
        names = ["" if cell is None else str(cell) for cell in header]
        if len(set(names)) < len(names) or "" in names:
            raise BulkFileError(
                f"{self._path}: the first row must name each column, each name once"
            )
        return names

    def _rows(self) -> Iterator[tuple[int, tuple[Any, ...]]]:
        rows = self._all_rows()
        next(rows, None)
        yield from rows

    def _all_rows(self) -> Iterator[tuple[int, tuple[Any, ...]]]:
        """Yield row numbers and the cells of rows that are not empty, without empty ones behind."""
        with self._workbook() as book:
            sheet = book[self._sheet]
            if not hasattr(sheet, "iter_rows"):
                raise BulkFileError(f"{self._path}: {self._sheet!r} is a chart, not a table")
            # The size that the file states may be wrong or missing.
            sheet.reset_dimensions()
            for number, row in enumerate(sheet.iter_rows(values_only=True), start=1):
                cells = tuple(row)
                while cells and cells[-1] in (None, ""):
                    cells = cells[:-1]
                if cells:
                    yield number, cells

    @contextmanager
    def _workbook(self) -> Iterator[Any]:
        try:
            book = self._openpyxl.load_workbook(self._path, read_only=True, data_only=True)
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise BulkFileError(f"{self._path} is not an Excel workbook (.xlsx): {error}") from None
        try:
            yield book
        finally:
            book.close()
