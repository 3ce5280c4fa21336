"""`JsonArrayReader`: the objects of one JSON array, read piece by piece."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from batchmill.producer.errors import BulkFileError

from .json_lines import json_record
from .record import MAX_LINE_BYTES, InputOptions, Record
from .text_encoding import json_encoding, open_text

_CHUNK_CHARS = 256 << 10
_SPACE = " \t\r\n"


class JsonArrayReader:
    """Reads the elements of an array; an element that is not an object has a problem."""

    def __init__(self, path: Path, options: InputOptions) -> None:
        """Find the encoding: UTF-8 unless the file or the user says otherwise.

        Raises:
            BulkFileError: the encoding is unknown.
        """
        self._path = path
        encoding = json_encoding(path, options.encoding)
        self.notes: tuple[str, ...] = (encoding.note,) if encoding.note else ()
        self._encoding = "utf-8-sig" if encoding.name == "utf-8" else encoding.name

    def columns(self) -> None:
        """Return None: each object may have its own fields."""

    def count(self) -> int:
        """Return the number of elements.

        Raises:
            BulkFileError: the file is not one JSON array.
        """
        return sum(1 for _ in self._elements())

    def records(self) -> Iterator[Record]:
        """Yield a record per element."""
        for number, text in enumerate(self._elements(), start=1):
            yield json_record(number, number, text.encode(errors="surrogatepass"))

    def _elements(self) -> Iterator[str]:
        """Yield the text of each element."""
        with open_text(self._path, self._encoding) as file:
            pieces = _Pieces(file)
            if pieces.next_char() != "[":
                raise self._error(pieces, "an array must begin with [")
            pieces.skip(1)
            separator = pieces.next_char()
            while separator != "]":
                try:
                    yield pieces.take_value()
                except ValueError as error:
                    raise self._error(pieces, str(error)) from None
                separator = pieces.next_char()
                if separator == ",":
                    pieces.skip(1)
                elif separator != "]":
                    raise self._error(pieces, "a comma or ] must follow an element")
            pieces.skip(1)
            if pieces.next_char():
                raise self._error(pieces, "text follows the end of the array")

    def _error(self, pieces: _Pieces, reason: str) -> BulkFileError:
        return BulkFileError(
            f"{self._path} is not a JSON array, at character {pieces.place + 1}: {reason}"
        )


class _Pieces:
    """The text of a file, of which only the current element is in memory."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self._text = ""
        self._start = 0
        self._num_dropped = 0
        self._decoder = json.JSONDecoder()

    @property
    def place(self) -> int:
        """Characters before the current one."""
        return self._num_dropped + self._start

    def next_char(self) -> str:
        """Return the next character that is not space; empty at the end of the file."""
        while True:
            while self._start < len(self._text):
                char = self._text[self._start]
                if char not in _SPACE:
                    return char
                self._start += 1
            if not self._read(_CHUNK_CHARS):
                return ""

    def skip(self, num_chars: int) -> None:
        """Move on."""
        self._start += num_chars

    def take_value(self) -> str:
        """Return the text of the value that begins at the next character, and move behind it.

        Raises:
            ValueError: it is not JSON, or longer than a line may be.
        """
        self.next_char()
        num_more = _CHUNK_CHARS
        while True:
            try:
                _, end = self._decoder.raw_decode(self._text, self._start)
            except (ValueError, RecursionError) as error:
                is_whole = not self._read(num_more)
                # Twice as much each time, so that the repeats cost as much as one reading.
                num_more *= 2
                if is_whole or len(self._text) - self._start > 2 * MAX_LINE_BYTES:
                    reason = getattr(error, "msg", "it is nested too deep")
                    raise ValueError(f"an element is not JSON, or never ends: {reason}") from None
            else:
                if end < len(self._text) or not self._read(_CHUNK_CHARS):
                    text = self._text[self._start : end]
                    self._start = end
                    return text

    def _read(self, num_chars: int) -> bool:
        """Read on, and drop what is done; return False at the end of the file."""
        more = self._file.read(num_chars)
        if more:
            self._num_dropped += self._start
            self._text = self._text[self._start :] + more
            self._start = 0
        return bool(more)
