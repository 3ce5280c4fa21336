"""Opening a file that may be compressed, as a stream of its content."""

from __future__ import annotations

import bz2
import gzip
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from batchmill.producer.errors import BulkFileError

_SUFFIXES = (".gz", ".gzip", ".bz2", ".xz")
_GZIP, _BZIP2, _XZ = b"\x1f\x8b", b"BZh", b"\xfd7zXZ"
_DAMAGE = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)


def inner_suffix(path: Path) -> str:
    """Return the suffix that says the format, lower case: `.csv` of `a.CSV.gz`."""
    if path.suffix.lower() in _SUFFIXES:
        path = path.with_suffix("")
    return path.suffix.lower()


@contextmanager
def open_content(path: Path) -> Iterator[IO[bytes]]:
    """Open a file's content: unpacked if the file is gzip, bzip2 or xz, whatever its name is.

    Raises:
        BulkFileError: the file cannot be read, or its compressed data is damaged.
    """
    try:
        with path.open("rb") as file:
            start = file.read(6)
            file.seek(0)
            with _unpacked(file, start) as content:
                yield content
    except _DAMAGE as error:
        raise BulkFileError(
            f"{path} is compressed and damaged ({error}); copy it again from where it came from"
        ) from None
    except OSError as error:
        # bzip2 reports damage as an OSError without a number.
        raise BulkFileError(f"{path} cannot be read: {error.strerror or error}") from error


def _unpacked(file: IO[bytes], start: bytes) -> IO[bytes]:
    if start.startswith(_GZIP):
        return cast(IO[bytes], gzip.open(file, "rb"))
    if start.startswith(_BZIP2):
        return cast(IO[bytes], bz2.open(file, "rb"))
    if start.startswith(_XZ):
        return cast(IO[bytes], lzma.open(file, "rb"))
    return file
