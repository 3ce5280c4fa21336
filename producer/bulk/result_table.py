"""`ResultTable`: all results of a run as one file, in the order of the input.

It is made of the journal when all lines are done, beside its place, and then put there. So the file
is whole or not there, and a file of something else is never replaced.
"""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from itertools import islice
from pathlib import Path
from typing import IO, Any

from batchmill.producer.errors import BulkFileError
from batchmill.producer.files.cells import encodable
from batchmill.producer.files.column_kinds import columns_of
from batchmill.producer.files.excel_table import MAX_CELL_CHARS, MAX_ROWS
from batchmill.producer.files.extra import import_library
from batchmill.producer.files.record import Record
from batchmill.producer.files.source import RecordFile
from batchmill.producer.files.table import Column, Table, create_table

from .decision_columns import DecisionColumns, decision_columns
from .journal import Journal
from .lines import LineSettings
from .options import BulkOptions
from .output import line_number
from .result_columns import ResultColumns, schema_properties

_LIBRARIES = {"xlsx": "openpyxl", "parquet": "pyarrow"}
_CHUNK_BYTES = 1 << 20


class ResultTable:
    """Writes the table of a run. In memory it has the place of each line: eight bytes per line."""

    def __init__(self, options: BulkOptions, source: RecordFile, num_records: int) -> None:
        """Check that the table can be written.

        Raises:
            BulkFileError: a library is not installed, or the sheet would have too many rows.
        """
        assert options.table is not None
        self._options = options.table
        self._lines = options.lines
        self._source = source
        self._num_records = num_records
        self._journal_path = options.output_path
        self.path = self._options.path
        #: Cells that got an apostrophe, and cells that Excel is too small for.
        self.num_escaped = self.num_cut = 0
        if not self._journal_path.exists():
            self._check_free(set())
        if library := _LIBRARIES.get(self._options.format):
            import_library(library, f"{self.path}, the output,")
        if self._options.format == "xlsx" and num_records >= MAX_ROWS:
            raise BulkFileError(
                f"{self.path}: a sheet of Excel has {MAX_ROWS} rows, and the input {num_records}; "
                "give a .csv or .parquet file"
            )
        if self._options.format == "xlsx" and any(each.embeds for each in self._lines.prompts):
            raise BulkFileError(
                f"{self.path}: a cell of Excel cannot hold every vector; give a .parquet, .csv or "
                ".jsonl file"
            )
        self._parts = _parts(self._lines)

    def check(self, journal: Journal) -> None:
        """Refuse a file in the table's place that this run did not write.

        Raises:
            BulkFileError: there is one, and it is left as it is.
        """
        self._check_free(journal.output.table_digests)

    def _check_free(self, own: set[str]) -> None:
        if not self.path.exists() or (self.path.is_file() and not self.path.stat().st_size):
            return
        if self.path.is_file() and _digest(self.path) in own:
            return
        raise BulkFileError(
            f"{self.path} exists and is not the table of this run, or was changed since; move the "
            "file away, or give another output"
        )

    def write(self, identity: str, journal: Journal) -> None:
        """Write the table and put it into its place.

        Raises:
            BulkFileError: it cannot be written, or another file has taken its place.
        """
        part = self.path.with_name(f".{self.path.name}.{identity[:16]}.part")
        try:
            self._write_part(part, journal)
            with part.open("rb") as file:
                os.fsync(file.fileno())
            digest = _digest(part)
            self.check(journal)
            journal.output.note_table(identity, digest)
            self._publish(part)
        except OSError as error:
            with suppress(OSError):
                part.unlink(missing_ok=True)
            reason = os.strerror(error.errno) if error.errno else str(error)  # pyarrow says more
            raise BulkFileError(
                f"{self.path} cannot be written: {reason}; all results are in "
                f"{self._journal_path}, and the same command writes the table again"
            ) from error

    def _publish(self, part: Path) -> None:
        """Put the table into its place; only a table of this run, or an empty file, gives way."""
        if not self.path.exists():
            try:
                os.link(part, self.path)  # unlike a rename, never replaces a file
            except FileExistsError:
                raise
            except OSError:  # a file system without links
                part.rename(self.path)
            else:
                part.unlink()
        else:
            part.replace(self.path)

    def _write_part(self, part: Path, journal: Journal) -> None:
        with ExitStack() as stack:
            files: list[IO[bytes]] = [
                stack.enter_context(lines.path.open("rb"))
                for lines in (journal.output, journal.errors)
            ]
            places = _places(files, self._num_records * len(self._parts))
            if self._options.format == "jsonl":
                with part.open("wb") as target:
                    target.writelines(_raw(files, place) for place in places[1:])
                return
            table = self._create(part)
            stack.callback(table.discard)  # does nothing to a table that is finished
            for record in islice(self._source.records(), self._num_records):
                first = (record.number - 1) * len(self._parts) + 1
                lines = [
                    json.loads(_raw(files, places[first + place]) or b"null")
                    for place in range(len(self._parts))
                ]
                table.write([encodable(cell) for cell in self._row(record, lines)])
            table.close()
            self.num_escaped = table.num_escaped

    def _create(self, part: Path) -> Table:
        columns = self._row_columns()
        self._names = [column.name for column in columns]
        for results in self._parts:
            columns += results.columns([column.name for column in columns])
        return create_table(
            part,
            self._options.format,
            [Column(encodable(each.name), each.kind) for each in columns],
            delimiter=self._source.csv_delimiter or ",",
            suits_excel=self._source.suits_excel,
            keeps_formulas=self._options.keeps_formulas,
        )

    def _row_columns(self) -> list[Column]:
        if not self._lines.prompts:
            return [Column("custom_id")]
        known = self._source.columns
        if known is not None and self._options.format != "parquet":
            return [Column(name) for name in known]
        return columns_of(islice(self._source.records(), self._num_records), known or ())

    def _row(self, record: Record, lines: list[dict[str, Any] | None]) -> list[Any]:
        if self._lines.prompts:
            data = record.data or {}
            cells = [data.get(name) for name in self._names]
        else:
            cells = [(lines[0] or {}).get("custom_id")]
        for results, line in zip(self._parts, lines, strict=True):
            cells += results.cells(line)
        return self._cut(cells) if self._options.format == "xlsx" else cells

    def _cut(self, cells: list[Any]) -> list[Any]:
        """Cut texts that a cell of Excel cannot hold, and say so in the last cell, the error."""
        long = [
            place
            for place, cell in enumerate(cells)
            if isinstance(cell, str) and len(cell) > MAX_CELL_CHARS
        ]
        for place in long:
            cells[place] = cells[place][: MAX_CELL_CHARS - 1] + "…"
        if long:
            self.num_cut += len(long)
            note = f"cut: a cell holds {MAX_CELL_CHARS} characters; whole in {self._journal_path}"
            cells[-1] = f"{cells[-1]}; {note}" if cells[-1] else note
        return cells


def _parts(lines: LineSettings) -> list[ResultColumns | DecisionColumns]:
    """Return the columns of each prompt."""
    samples = lines.max_samples or 1
    properties = schema_properties(lines.defaults.get("response_format"))
    explain = lines.defaults.get("explain")
    explained = tuple(map(str, explain)) if isinstance(explain, list) else ()
    selects = isinstance(lines.defaults.get("select"), Mapping)
    decision = lines.defaults.get("decision")
    if not lines.prompts:
        if isinstance(decision, Mapping):
            return [decision_columns(decision, with_probabilities=lines.with_probabilities)]
        return [ResultColumns("", samples, properties, explained=explained, selects=selects)]
    return [
        ResultColumns(
            prompt.name,
            samples,
            properties,
            embeds=prompt.embeds,
            explained=explained,
            selects=selects,
        )
        if prompt.decision is None
        else decision_columns(prompt.decision, with_probabilities=lines.with_probabilities)
        for prompt in lines.prompts
    ]


def _places(files: list[IO[bytes]], num_lines: int) -> array[int]:
    """Return each line's offset + 1, negative in the second file; 0 if it is in neither."""
    places = array("q", bytes(8 * (num_lines + 1)))
    for sign, file in zip((1, -1), files, strict=True):
        offset = 0
        for raw in file:
            number = line_number(raw[:64])
            if 1 <= number <= num_lines:
                places[number] = sign * (offset + 1)
            offset += len(raw)
    return places


def _raw(files: list[IO[bytes]], place: int) -> bytes:
    """Return the line at a place; empty if there is none."""
    if place == 0:
        return b""
    file = files[place < 0]
    file.seek(abs(place) - 1)
    return file.readline()


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        for chunk in _chunks(file):
            digest.update(chunk)
    return digest.hexdigest()


def _chunks(file: IO[bytes]) -> Iterator[bytes]:
    while chunk := file.read(_CHUNK_BYTES):
        yield chunk
