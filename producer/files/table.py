"""`Table`, a file of rows that is written once, and `create_table`, which makes one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from .csv_table import CsvTable
from .excel_table import ExcelTable
from .parquet_table import ParquetTable

#: Formats of tables that can be written, by the suffix of the file.
TABLE_SUFFIXES = {".csv": "csv", ".tsv": "tsv", ".xlsx": "xlsx", ".parquet": "parquet"}


class Table(Protocol):
    """A table that is being written."""

    #: Cells that got an apostrophe, so that a spreadsheet takes them for text.
    num_escaped: int

    def write(self, row: Sequence[Any]) -> None:
        """Append a row, with one JSON value per column; None is an empty cell."""

    def close(self) -> None:
        """Finish the file."""

    def discard(self) -> None:
        """Give up the file after an error, so that nothing writes to it any more."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Attributes:
        name: its name.
        kind: `text`, `integer`, `number`, `flag` or `vector`; only Parquet has kinds.
    """

    name: str
    kind: str = "text"


def create_table(
    path: Path,
    format: str,
    columns: Sequence[Column],
    *,
    delimiter: str = ",",
    suits_excel: bool = False,
    keeps_formulas: bool = False,
) -> Table:
    """Create a table and write the names of its columns.

    Args:
        path: the file, which is emptied.
        format: `csv`, `tsv`, `xlsx` or `parquet`.
        columns: in order.
        delimiter: of CSV.
        suits_excel: begin CSV with a byte order mark, by which Excel knows UTF-8.
        keeps_formulas: write texts that a spreadsheet would compute as they are.

    Raises:
        BulkFileError: a library is not installed.
    """
    names = [column.name for column in columns]
    match format:
        case "parquet":
            return ParquetTable(path, {column.name: column.kind for column in columns})
        case "xlsx":
            return ExcelTable(path, names)
        case _:
            return CsvTable(
                path,
                names,
                delimiter="\t" if format == "tsv" else delimiter,
                suits_excel=suits_excel,
                keeps_formulas=keeps_formulas,
            )
