"""Options that say where the results of a bulk run go."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .errors import usage_error

if TYPE_CHECKING:
    from batchmill.producer.bulk.options import TableOptions

_OUTPUT = "Output"
_TABLES = ("csv", "tsv", "xlsx", "parquet")
_REFUSED = (".gz", ".bz2", ".xz", ".zip", ".xls", ".xlsm", ".ods", ".feather", ".arrow")


@dataclass(frozen=True, slots=True)
class OutputFiles:
    """The files of a run: its two journals, and the table that is made of them."""

    output: Path
    errors: Path
    table: TableOptions | None


@dataclass(frozen=True, slots=True)
class OutputOptions:
    """Where the results go."""

    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            metavar="OUT",
            help="File for the results: JSON lines, or a table if it ends in .csv, .tsv, .xlsx or "
            ".parquet; - is standard output.",
            rich_help_panel=_OUTPUT,
        ),
    ] = None
    errors: Annotated[
        Path | None,
        typer.Option(
            metavar="ERR",
            help="File for failed lines. Default: OUT with .errors before its extension.",
            rich_help_panel=_OUTPUT,
        ),
    ] = None
    output_format: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="jsonl, csv, tsv, xlsx or parquet. Default: as the name of OUT ends.",
            rich_help_panel=_OUTPUT,
        ),
    ] = None
    in_order: Annotated[
        bool,
        typer.Option(
            "--in-order",
            help="Write JSON lines at the end, in the order of the input, failures included.",
            rich_help_panel=_OUTPUT,
        ),
    ] = False
    keep_formulas: Annotated[
        bool,
        typer.Option(
            "--keep-formulas",
            help="Write texts of a CSV file that a spreadsheet would compute (= + - @) without an "
            "apostrophe.",
            rich_help_panel=_OUTPUT,
        ),
    ] = False

    @contextmanager
    def files(self) -> Iterator[OutputFiles]:
        """Yield the files; those of standard output are copied to it at the end.

        Raises:
            CommandError: there is no output, or its format is unknown.
        """
        if self.output is None:
            raise usage_error("give a file for the results: -o OUT")
        if str(self.output) != "-":
            yield self._files(self.output)
            return
        with tempfile.TemporaryDirectory(prefix="batchmill-") as folder:
            whole = Path(folder) / "stdout"
            yield OutputFiles(
                Path(folder) / "journal.jsonl",
                self.errors or Path(folder) / "errors.jsonl",
                self._table(whole, self.output_format or "jsonl"),
            )
            with whole.open("rb") as file:
                shutil.copyfileobj(file, sys.stdout.buffer)
            sys.stdout.buffer.flush()

    @property
    def is_stdout(self) -> bool:
        """Whether the results go to standard output."""
        return str(self.output) == "-"

    def _files(self, path: Path) -> OutputFiles:
        suffix = path.suffix.lower()
        if self.output_format is None and suffix in _REFUSED:
            raise usage_error(
                f"{path}: bulk does not write {suffix}; give .jsonl, .csv, .tsv, .xlsx or .parquet"
            )
        format = self.output_format or suffix.removeprefix(".")
        if format not in _TABLES:
            if self.output_format not in (None, "jsonl"):
                raise usage_error(f"--output-format must be jsonl or one of {', '.join(_TABLES)}")
            format = "jsonl"
        if format == "jsonl" and not self.in_order:
            errors = self.errors or path.with_suffix(f".errors{path.suffix}")
            return OutputFiles(path, errors, None)
        return OutputFiles(
            path.with_name(f"{path.name}.journal.jsonl"),
            self.errors or path.with_name(f"{path.name}.errors.jsonl"),
            self._table(path, format),
        )

    def _table(self, path: Path, format: str) -> TableOptions:
        from batchmill.producer.bulk.options import TableOptions

        if format not in (*_TABLES, "jsonl"):
            raise usage_error(f"--output-format must be jsonl or one of {', '.join(_TABLES)}")
        return TableOptions(path, format, keeps_formulas=self.keep_formulas)
