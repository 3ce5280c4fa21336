"""`CsvTable`: rows as CSV."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from .formulas import is_formula


class CsvTable:
    """Writes rows. A text that a spreadsheet would compute gets an apostrophe before it."""

    def __init__(
        self,
        path: Path,
        names: Sequence[str],
        *,
        delimiter: str,
        suits_excel: bool,
        keeps_formulas: bool,
    ) -> None:
        """Create the file and write the names of the columns."""
        self.num_escaped = 0
        self._keeps_formulas = keeps_formulas
        encoding = "utf-8-sig" if suits_excel else "utf-8"
        self._file = path.open("w", encoding=encoding, newline="")
        self._writer = csv.writer(self._file, delimiter=delimiter, lineterminator="\r\n")
        self.write(list(names))

    def write(self, row: Sequence[Any]) -> None:
        """Append a row."""
        self._writer.writerow([self._cell(value) for value in row])

    def close(self) -> None:
        """Finish the file."""
        self._file.close()

    def discard(self) -> None:
        """See `Table`."""
        with suppress(OSError):
            self._file.close()

    def _cell(self, value: Any) -> str:
        if not isinstance(value, str):
            return "" if value is None else json.dumps(value, ensure_ascii=False)
        if self._keeps_formulas or not is_formula(value):
            return value
        self.num_escaped += 1
        return f"'{value}"
