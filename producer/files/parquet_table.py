"""`ParquetTable`: rows as Parquet, in groups of bounded size."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from .extra import import_library

_GROUP_ROWS = 10_000


class ParquetTable:
    """Writes rows with typed columns."""

    num_escaped = 0

    def __init__(self, path: Path, kinds: Mapping[str, str]) -> None:
        """Create the file.

        Args:
            path: the file.
            kinds: of each column.

        Raises:
            BulkFileError: pyarrow is not installed.
        """
        self._arrow = import_library("pyarrow", "a Parquet file")
        parquet = import_library("pyarrow.parquet", "a Parquet file")
        types = {
            "text": self._arrow.string(),
            "integer": self._arrow.int64(),
            "number": self._arrow.float64(),
            "flag": self._arrow.bool_(),
            "vector": self._arrow.list_(self._arrow.float32()),
        }
        self._kinds = list(kinds.values())
        self._schema = self._arrow.schema([(name, types[kind]) for name, kind in kinds.items()])
        self._rows: list[list[Any]] = []
        self._writer = parquet.ParquetWriter(path, self._schema)

    def write(self, row: Sequence[Any]) -> None:
        """Append a row."""
        self._rows.append(list(map(_typed, row, self._kinds)))
        if len(self._rows) == _GROUP_ROWS:
            self._write_group()

    def close(self) -> None:
        """Finish the file."""
        self._write_group()
        self._writer.close()

    def discard(self) -> None:
        """See `Table`."""
        with suppress(OSError):
            self._writer.close()
        self._writer.is_open = False  # otherwise it tries again when it is collected

    def _write_group(self) -> None:
        if self._rows:
            arrays = [
                self._arrow.array(list(cells), type=field.type)
                for cells, field in zip(zip(*self._rows, strict=True), self._schema, strict=True)
            ]
            self._writer.write_table(self._arrow.Table.from_arrays(arrays, schema=self._schema))
            self._rows = []


def _typed(value: Any, kind: str) -> Any:
    if value is None or (kind != "text" and value == ""):
        return None
    if kind != "text" or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False)
