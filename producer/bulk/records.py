"""Reading the input of a bulk run record by record, in constant memory: JSON lines or CSV."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from batchmill.producer.errors import BulkFileError, JobRejected
from batchmill.producer.job.strict_json import read_strict_json

#: A prompt of the largest size fits, even with every byte escaped.
MAX_LINE_BYTES = 16 << 20
#: The largest cell of a CSV file, in characters.
MAX_CELL_CHARS = 4 << 20
#: Enough to recognise a format.
_NUM_START_BYTES = 4096
_DIGEST_CHUNK_BYTES = 1 << 20


#: First bytes of files that are neither JSON lines nor CSV.
_OTHER_FORMATS = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "Zstandard",
    b"PK\x03\x04": "a ZIP archive or a spreadsheet",
    b"PAR1": "Parquet",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}


@dataclass(frozen=True, slots=True)
class Record:
    """One record of the input.

    Attributes:
        number: its place among the records, from 1. Empty lines do not count.
        line: its line in the file (JSON lines), or its row (CSV), from 1.
        data: its fields; None if it cannot be read.
        problem: why it cannot be read.
    """

    number: int
    line: int
    data: dict[str, Any] | None
    problem: str = ""


def digest_of(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, hex.

    Raises:
        BulkFileError: it cannot be read, or is not a regular file, so it cannot be read twice.
    """
    if not path.is_file():
        raise BulkFileError(
            f"{path} is not a file; bulk reads its input twice, so give it a file, not a pipe"
        )
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_DIGEST_CHUNK_BYTES):
                digest.update(chunk)
    except OSError as error:
        raise BulkFileError(f"{path} cannot be read: {error.strerror}") from error
    return digest.hexdigest()


def count_records(path: Path) -> int:
    """Return how many records a file holds, without parsing them.

    Raises:
        BulkFileError: the file as a whole cannot be read.
    """
    _refuse_other_format(path)
    if is_csv(path):
        with _open_text(path) as file:
            num_rows = sum(1 for row in _rows(file, path) if row)
        return max(0, num_rows - 1)
    with path.open("rb") as file:
        return sum(1 for _ in _lines(file))


def read_records(path: Path) -> Iterator[Record]:
    """Yield the records of a file: CSV if its name ends in `.csv`, else JSON lines.

    A record that cannot be read is yielded with its problem, and the next ones are read.

    Raises:
        BulkFileError: the file as a whole cannot be read.
    """
    _refuse_other_format(path)
    return _read_csv(path) if is_csv(path) else _read_json_lines(path)


def _refuse_other_format(path: Path) -> None:
    """Refuse a file of another format as a whole, instead of each of its lines.

    Raises:
        BulkFileError: the file is compressed, binary or one JSON array.
    """
    with path.open("rb") as file:
        start = file.read(_NUM_START_BYTES)
    for magic, name in _OTHER_FORMATS.items():
        if start.startswith(magic):
            raise BulkFileError(
                f"{path} is {name}: bulk reads JSON lines or CSV in UTF-8, so convert or unpack it"
            )
    first_line = start.lstrip().partition(b"\n")[0].rstrip()
    if not is_csv(path) and (first_line == b"[" or first_line.startswith(b"[{")):
        raise BulkFileError(
            f"{path} is one JSON array: write each of its objects on a line of its own "
            f"(jq -c '.[]' {path.name})"
        )


def is_csv(path: Path) -> bool:
    """Return whether a file is read as CSV."""
    return path.suffix.lower() == ".csv"


def csv_columns(path: Path) -> list[str]:
    """Return the columns that the first row of a CSV file names."""
    with _open_text(path) as file:
        return next((row for row in _rows(file, path) if row), [])


def _read_json_lines(path: Path) -> Iterator[Record]:
    with path.open("rb") as file:
        for number, (line, raw) in enumerate(_lines(file), start=1):
            yield _json_record(number, line, raw)


def _lines(file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """Yield line numbers and lines that are not empty; a line that is too long is cut."""
    line = 0
    while raw := file.readline(MAX_LINE_BYTES + 1):
        line += 1
        rest = raw
        while len(rest) > MAX_LINE_BYTES and not rest.endswith(b"\n"):
            rest = file.readline(MAX_LINE_BYTES + 1)
        if raw.strip():
            yield line, raw


def _json_record(number: int, line: int, raw: bytes) -> Record:
    if len(raw) > MAX_LINE_BYTES:
        problem = f"the line has more than {MAX_LINE_BYTES} bytes, the limit of a line; shorten it"
        return Record(number, line, None, problem)
    try:
        data = read_strict_json(raw.decode("utf-8-sig" if line == 1 else "utf-8"))
    except JobRejected as error:
        return Record(number, line, None, str(error))
    except UnicodeDecodeError as error:
        return Record(number, line, None, f"the line is not UTF-8: {error.reason}")
    except (ValueError, RecursionError) as error:
        # The text of a JSONDecodeError names the place and quotes nothing of the line.
        return Record(number, line, None, f"the line is not JSON: {error}")
    if not isinstance(data, dict):
        return Record(number, line, None, "the line is JSON, but not an object")
    return Record(number, line, data)


def _open_text(path: Path) -> IO[str]:
    return path.open(encoding="utf-8-sig", errors="surrogateescape", newline="")


def _rows(file: IO[str], path: Path) -> Iterator[list[str]]:
    csv.field_size_limit(MAX_CELL_CHARS)
    reader = csv.reader(file)
    while True:
        try:
            yield next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            # The reader has lost its place: the following rows would be garbage.
            raise BulkFileError(f"{path}, line {reader.line_num}: not CSV: {error}") from None


def _read_csv(path: Path) -> Iterator[Record]:
    with _open_text(path) as file:
        rows = (row for row in _rows(file, path) if row)
        header = next(rows, None)
        if header is None:
            return
        if len(set(header)) < len(header) or "" in header:
            raise BulkFileError(f"{path}: the first row must name each column, each name once")
        for number, row in enumerate(rows, start=1):
            yield _csv_record(number, header, row)


def _csv_record(number: int, header: list[str], row: list[str]) -> Record:
    line = number + 1
    if len(row) != len(header):
        problem = f"the row has {len(row)} cells, the first row names {len(header)} columns"
        return Record(number, line, None, problem)
    if any("\udc80" <= char <= "\udcff" for cell in row for char in cell):
        return Record(number, line, None, "the row is not UTF-8")
    return Record(number, line, dict(zip(header, row, strict=True)))
