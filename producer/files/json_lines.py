"""`JsonLinesReader`: one JSON object per line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import IO

from batchmill.producer.errors import BulkFileError, JobRejected
from batchmill.producer.job.strict_json import read_strict_json

from .compressed import open_content
from .record import MAX_LINE_BYTES, InputOptions, Record
from .text_encoding import json_encoding, open_text

#: At least one of so many first lines must be an object; otherwise the file is not JSON lines.
_NUM_FIRST_LINES = 20


class JsonLinesReader:
    """Reads objects; a line that is not an object becomes a record with a problem."""

    def __init__(self, path: Path, options: InputOptions) -> None:
        """Find the encoding: UTF-8 unless the file or the user says otherwise.

        Raises:
            BulkFileError: the encoding is unknown.
        """
        self._path = path
        encoding = json_encoding(path, options.encoding)
        self.notes: tuple[str, ...] = (encoding.note,) if encoding.note else ()
        self._encoding = encoding.name

    def columns(self) -> None:
        """Return None: each line may have its own fields."""

    def count(self) -> int:
        """Return the number of lines that are not empty, without parsing them.

        Raises:
            BulkFileError: none of the first lines is an object.
        """
        num_lines = num_objects = 0
        for _, text in self._lines():
            num_lines += 1
            if num_lines <= _NUM_FIRST_LINES:
                num_objects += text.lstrip().startswith(b"{")
            if num_lines == _NUM_FIRST_LINES and not num_objects:
                break
        if num_lines and not num_objects:
            raise BulkFileError(
                f"{self._path} is not a file that bulk reads: it is not JSON lines, because none "
                f"of its first {min(num_lines, _NUM_FIRST_LINES)} lines begins with {{. A table "
                "in text needs a name that ends in .csv or .tsv, or --input-format csv"
            )
        return num_lines

    def records(self) -> Iterator[Record]:
        """Yield a record per line that is not empty."""
        for number, (line, raw) in enumerate(self._lines(), start=1):
            yield json_record(number, line, raw)

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        """Yield line numbers and lines that are not empty; a line that is too long is cut."""
        with open_content(self._path) as file:
            if self._encoding in ("utf-8", "utf-8-sig"):
                yield from _utf8_lines(file)
            else:
                yield from self._other_lines()

    def _other_lines(self) -> Iterator[tuple[int, bytes]]:
        with open_text(self._path, self._encoding) as text:
            for number, line in enumerate(text, start=1):
                if line.strip():
                    yield number, line.encode(errors="surrogatepass")


def _utf8_lines(file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    line = 0
    while raw := file.readline(MAX_LINE_BYTES + 1):
        line += 1
        rest = raw
        while len(rest) > MAX_LINE_BYTES and not rest.endswith(b"\n"):
            rest = file.readline(MAX_LINE_BYTES + 1)
        if line == 1:
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        if raw.strip():
            yield line, raw


def json_record(number: int, line: int, raw: bytes) -> Record:
    """Return the record of an object's text."""
    if len(raw) > MAX_LINE_BYTES:
        problem = f"the line has more than {MAX_LINE_BYTES} bytes, the limit of a line; shorten it"
        return Record(number, line, None, problem)
    try:
        data = read_strict_json(raw.decode())
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
