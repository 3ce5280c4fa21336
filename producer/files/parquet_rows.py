"""`ParquetReader`: rows of a Parquet file, batch by batch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from batchmill.producer.errors import BulkFileError

from .cells import plain_value
from .extra import import_library
from .record import Record

_BATCH_ROWS = 1024


class ParquetReader:
    """Reads rows. A null is an empty text, as an empty cell of a CSV file is."""

    notes: tuple[str, ...] = ()

    def __init__(self, path: Path) -> None:
        """Read the schema.

        Raises:
            BulkFileError: pyarrow is not installed, or the file is not Parquet.
        """
        self._path = path
        self._parquet = import_library("pyarrow.parquet", f"{path}, a Parquet file,")
        with self._open() as file:
            self._columns: list[str] = list(file.schema_arrow.names)
            self._num_rows: int = file.metadata.num_rows
        if len(set(self._columns)) < len(self._columns):
            raise BulkFileError(f"{path}: two columns have the same name; rename one")

    def columns(self) -> list[str]:
        """Return the columns of the schema."""
        return self._columns

    def count(self) -> int:
        """Return the number of rows, which the file itself says."""
        return self._num_rows

    def records(self) -> Iterator[Record]:
        """Yield the rows."""
        number = 0
        with self._open() as file:
            for batch in file.iter_batches(batch_size=_BATCH_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield self._record(number, row)

    def _record(self, number: int, row: dict[str, Any]) -> Record:
        try:
            data = {name: plain_value(name, value) for name, value in row.items()}
        except ValueError as error:
            return Record(number, number, None, str(error))
        return Record(number, number, data)

    def _open(self) -> Any:
        try:
            return self._parquet.ParquetFile(self._path)
        except (OSError, ValueError) as error:  # pyarrow's errors are subclasses of these
            raise BulkFileError(f"{self._path} is not a Parquet file: {error}") from None
