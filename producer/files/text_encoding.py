"""Finding the encoding of a text file: from its first bytes, or from all of it."""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from batchmill.producer.errors import BulkFileError

from .compressed import open_content

#: UTF-32 first: its mark begins with that of UTF-16.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_NUM_START_BYTES = 4096
_MAX_LINE_BYTES = 1 << 20
_WINDOWS = "cp1252"


@dataclass(frozen=True, slots=True)
class Encoding:
    """The encoding of a file.

    Attributes:
        name: Python's name of it.
        note: a sentence about how it was guessed; empty if it was not.
    """

    name: str
    note: str = ""

    @property
    def suits_excel(self) -> bool:
        """Whether Excel wrote the file, or another program that marks UTF-8 for it."""
        return self.name != "utf-8"


def given_encoding(name: str) -> Encoding:
    """Return an encoding by a user's name for it.

    Raises:
        BulkFileError: no encoding of text has this name.
    """
    try:
        info = codecs.lookup(name)
        "".encode(info.name)
    except (LookupError, ValueError):
        raise BulkFileError(
            f"--encoding {name!r} is unknown; give for example utf-8, utf-16, windows-1252, "
            "iso-8859-15 or shift_jis"
        ) from None
    return Encoding("utf-8-sig" if info.name == "utf-8" else info.name)


def marked_encoding(path: Path) -> Encoding | None:
    """Return the encoding that a file's first bytes show; None if they show none."""
    with open_content(path) as file:
        start = file.read(_NUM_START_BYTES)
    for mark, name in _MARKS.items():
        if start.startswith(mark):
            return Encoding(name)
    # Latin text in UTF-16 has a zero byte in every pair; no other text has any.
    for place, name in ((1, "utf-16-le"), (0, "utf-16-be")):
        pairs = start[place::2], start[1 - place :: 2]
        if len(start) >= 4 and pairs[0].count(0) * 10 > len(pairs[0]) * 6 and 0 not in pairs[1]:
            return Encoding(name, f"{path} is read as {name.upper()}: every second byte is zero")
    return None


def json_encoding(path: Path, given: str | None) -> Encoding:
    """Return the encoding of a JSON file: the given one, else as marked, else UTF-8.

    Raises:
        BulkFileError: the given one is unknown.
    """
    found = marked_encoding(path) if given is None else None
    return found or given_encoding(given or "utf-8")


def find_encoding(path: Path) -> Encoding:
    """Return the encoding of a text table: as marked, UTF-8 if all of it is, else Windows-1252.

    Raises:
        BulkFileError: only some lines are UTF-8, or the encoding cannot be guessed.
    """
    marked = marked_encoding(path)
    if marked is not None:
        return marked
    num_good, num_bad, first_bad = 0, 0, 0
    has_undefined = False
    with open_content(path) as file:
        for line, raw in enumerate(iter(lambda: file.readline(_MAX_LINE_BYTES), b""), start=1):
            if raw.isascii():
                continue
            try:
                raw.decode()
            except UnicodeDecodeError as error:
                if len(raw) == _MAX_LINE_BYTES and error.end >= len(raw) - 3:
                    continue  # the piece of a long line ends inside of a character
                num_bad += 1
                first_bad = first_bad or line
                has_undefined = has_undefined or not _is_windows(raw)
            else:
                num_good += 1
    return _judged(path, num_good, num_bad, first_bad, has_undefined=has_undefined)


def _judged(
    path: Path, num_good: int, num_bad: int, first_bad: int, *, has_undefined: bool
) -> Encoding:
    if not num_bad:
        return Encoding("utf-8")
    if num_good > num_bad:
        raise BulkFileError(
            f"{path}, line {first_bad}: not UTF-8, although other lines are; mend {num_bad} "
            "such lines, or give --encoding"
        )
    if has_undefined:
        raise BulkFileError(
            f"{path}, line {first_bad}: neither UTF-8 nor Windows-1252; give --encoding, or save "
            'the file as "CSV UTF-8"'
        )
    return Encoding(
        _WINDOWS,
        f"{path} is not UTF-8 and is read as Windows-1252, as Excel in Western Europe writes; "
        "if letters look wrong in --dry-run, give --encoding",
    )


def _is_windows(raw: bytes) -> bool:
    try:
        raw.decode(_WINDOWS)
    except UnicodeDecodeError:
        return False
    return True


@contextmanager
def open_text(path: Path, encoding: str) -> Iterator[IO[str]]:
    """Open a file's content as text, with its line ends.

    Raises:
        BulkFileError: it is not in this encoding.
    """
    with open_content(path) as content:
        text = io.TextIOWrapper(content, encoding=encoding, newline="")
        try:
            yield text
            text.detach()
        except UnicodeError as error:
            reason = getattr(error, "reason", str(error))
            raise BulkFileError(
                f"{path} is not {encoding} ({reason}); give its --encoding, or save it as UTF-8"
            ) from None
