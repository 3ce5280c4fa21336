"""`RecordFile`: an input file of any known format, checked as a whole and read again and again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from batchmill.producer.errors import BulkFileError

from .compressed import inner_suffix, open_content
from .csv_rows import CsvReader
from .excel_rows import ExcelReader
from .json_array import JsonArrayReader
from .json_lines import JsonLinesReader
from .parquet_rows import ParquetReader
from .picture_folder import PATH_COLUMN, FolderReader
from .record import InputOptions, Reader, Record
from .text_encoding import given_encoding, marked_encoding

#: What `--input-format` takes.
FORMATS = ("csv", "tsv", "jsonl", "json", "parquet", "xlsx")
#: Suffixes of the formats that only a name tells apart from JSON lines.
_SUFFIXES = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".psv": "psv",
    ".parquet": "parquet",
    ".xlsx": "xlsx",
    ".xlsm": "xlsx",
}
_DELIMITERS = {"csv": ",", "tsv": "\t", "psv": "|"}
_WORKBOOK = b"PK\x03\x04"
_PARQUET = b"PAR1"
#: First bytes of files that are read in no case, and the way to a file that is.
_REFUSED = {
    b"\x28\xb5\x2f\xfd": "compressed with Zstandard: unpack it (zstd -d)",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook (.xls): save it as .xlsx or as CSV UTF-8",
    b"%PDF": "a PDF: copy its text into a table",
    b"SQLite format 3": "a SQLite database: export the table as CSV",
    b"ARROW1": "an Arrow file: write it as Parquet",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
}
_NUM_START_BYTES = 4096
_DIGEST_CHUNK_BYTES = 1 << 20


class RecordFile:
    """One input file. Its records are never all in memory."""

    def __init__(self, path: Path, options: InputOptions | None = None) -> None:
        """Find the format and check the file.

        Raises:
            BulkFileError: it cannot be read, is of no known format, or damaged.
        """
        options = options or InputOptions()
        self.path = path
        if path.is_dir():
            self._reader: Reader = FolderReader(path)
            self.format = "folder"
            self.notes = self._reader.notes
            self.num_records = self._reader.count()
            return
        if not path.is_file():
            raise BulkFileError(
                f"{path} is not a file; give a file or a folder, or - for standard input, which "
                "bulk saves to a temporary file because it reads its input twice"
                if path.exists()
                else f"{path} does not exist"
            )
        self.format = _format_of(path, options)
        self._reader = _reader_of(path, self.format, options)
        #: What was guessed about the file, in sentences.
        self.notes = self._reader.notes
        self.num_records = self._reader.count()

    @property
    def is_table(self) -> bool:
        """Whether the records are rows below named columns."""
        return self.columns is not None

    @property
    def columns(self) -> list[str] | None:
        """The columns of a table; None if each record has its own fields."""
        return self._reader.columns()

    @property
    def folder(self) -> Path:
        """What relative paths in the records are relative to."""
        return self.path if self.format == "folder" else self.path.parent

    @property
    def media_columns(self) -> dict[str, str]:
        """Columns that name a picture or a sound by themselves, with its kind."""
        reader = self._reader
        return {PATH_COLUMN: reader.kind} if isinstance(reader, FolderReader) else {}

    @property
    def csv_delimiter(self) -> str | None:
        """The delimiter of a CSV file; None for other formats."""
        return self._reader.dialect.delimiter if isinstance(self._reader, CsvReader) else None

    @property
    def suits_excel(self) -> bool:
        """Whether Excel should be able to open a text file that is made from this one."""
        if isinstance(self._reader, CsvReader):
            return self._reader.dialect.suits_excel
        return self.format == "xlsx"

    def records(self) -> Iterator[Record]:
        """Yield the records in order; one that cannot be read has a problem."""
        return self._reader.records()

    def digest(self) -> str:
        """Return the SHA-256 of the file's bytes, hex.

        Raises:
            BulkFileError: it cannot be read.
        """
        if isinstance(self._reader, FolderReader):
            return self._reader.digest()
        digest = hashlib.sha256()
        try:
            with self.path.open("rb") as file:
                while chunk := file.read(_DIGEST_CHUNK_BYTES):
                    digest.update(chunk)
        except OSError as error:
            raise BulkFileError(f"{self.path} cannot be read: {error.strerror}") from error
        return digest.hexdigest()


def _format_of(path: Path, options: InputOptions) -> str:
    """Return the format as given, as the content shows, or as the name says."""
    with open_content(path) as file:
        start = file.read(_NUM_START_BYTES)
    for magic, advice in _REFUSED.items():
        if start.startswith(magic):
            raise BulkFileError(f"{path} is not a file that bulk reads: it is {advice}")
    if options.format is not None:
        if options.format not in FORMATS:
            raise BulkFileError(f"--input-format must be one of {', '.join(FORMATS)}")
        return options.format
    suffix = _SUFFIXES.get(inner_suffix(path))
    if start.startswith(_PARQUET):
        return "parquet"
    if start.startswith(_WORKBOOK):
        if suffix == "xlsx" or b"xl/" in start or b"[Content_Types]" in start:
            return "xlsx"
        raise BulkFileError(f"{path} is a ZIP archive: unpack it, and give a file that was in it")
    if suffix in ("parquet", "xlsx"):
        raise BulkFileError(
            f"{path} is no {'Parquet file' if suffix == 'parquet' else 'Excel workbook'}, although "
            "its name says so; rename it for what it is, or export it again"
        )
    text = _start_of_text(path, start, options)
    if suffix is None and options.delimiter is not None:
        return "csv"
    return suffix or ("json" if _is_array(text) else "jsonl")


def _start_of_text(path: Path, start: bytes, options: InputOptions) -> str:
    """Return the beginning of a text file.

    Raises:
        BulkFileError: the file is binary.
    """
    found = given_encoding(options.encoding) if options.encoding else marked_encoding(path)
    if found is None and b"\0" in start:
        raise BulkFileError(
            f"{path} is not a file that bulk reads: it is binary. Give CSV, TSV, JSON lines, a "
            "JSON array, Parquet or .xlsx; these may be compressed with gzip"
        )
    return start.decode(found.name if found else "utf-8", errors="replace")


def _is_array(text: str) -> bool:
    """Return whether a text is one JSON array of objects, not lines that are arrays."""
    text = text.removeprefix("\ufeff").lstrip()
    return text.startswith("[") and text[1:].lstrip()[:1] in ("{", "", "]")


def _reader_of(path: Path, format: str, options: InputOptions) -> Reader:
    for name, value, formats in (
        ("--delimiter", options.delimiter, ("csv", "tsv", "psv")),
        ("--encoding", options.encoding, ("csv", "tsv", "psv", "jsonl", "json")),
        ("--sheet", options.sheet, ("xlsx",)),
    ):
        if value is not None and format not in formats:
            raise BulkFileError(f"{name} is of no use: {path} is read as {format}")
    if format in ("parquet", "xlsx") and inner_suffix(path) != path.suffix.lower():
        raise BulkFileError(f"{path} must be unpacked first: {format} is compressed by itself")
    match format:
        case "json":
            return JsonArrayReader(path, options)
        case "jsonl":
            return JsonLinesReader(path, options)
        case "parquet":
            return ParquetReader(path)
        case "xlsx":
            return ExcelReader(path, options)
        case _:
            return CsvReader(path, options, _DELIMITERS[format])
