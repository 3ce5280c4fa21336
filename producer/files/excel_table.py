"""`ExcelTable`: rows of one sheet of an Excel workbook."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from .extra import import_library

#: Characters of a cell, and rows of a sheet, the first row included.
MAX_CELL_CHARS = 32_767
MAX_ROWS = 1_048_576


class ExcelTable:
    """Writes rows. A text is stored as text, so no spreadsheet computes it."""

    num_escaped = 0

    def __init__(self, path: Path, names: Sequence[str]) -> None:
        """Begin a sheet with the names of the columns.

        Raises:
            BulkFileError: openpyxl is not installed.
        """
        self._path = path
        openpyxl = import_library("openpyxl", "an Excel workbook")
        self._cell_type = import_library("openpyxl.cell", "an Excel workbook").WriteOnlyCell
        self._escape = import_library("openpyxl.utils.escape", "an Excel workbook").escape
        self._book = openpyxl.Workbook(write_only=True)
        self._sheet = self._book.create_sheet("results")
        self.write(list(names))

    def write(self, row: Sequence[Any]) -> None:
        """Append a row; the caller has seen to it that no text is too long."""
        self._sheet.append([self._cell(value) for value in row])

    def close(self) -> None:
        """Finish the file."""
        self._book.save(self._path)
        self._book.close()

    def discard(self) -> None:
        """See `Table`."""
        with suppress(Exception):  # openpyxl repeats the error, or says that the sheet is closed
            self._sheet.close()

    def _cell(self, value: Any) -> Any:
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, int | float):
            # Excel has 15 digits; a longer number would be rounded.
            return value if abs(value) < 10**15 else self._text(str(value))
        return self._text(
            value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        )

    def _text(self, text: str) -> Any:
        cell = self._cell_type(self._sheet)
        cell.value = self._escape(text)
        cell.data_type = "s"  # not "f", which openpyxl makes of a text that begins with =
        return cell
