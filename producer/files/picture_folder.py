"""`FolderReader`: the pictures and sounds of a folder, one record for each file."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from batchmill.producer.errors import BulkFileError
from batchmill.producer.plural import pluralize

from .record import Record

#: Suffixes of the files that are records; others are left out, and counted in a note.
SUFFIXES: Final = {
    **dict.fromkeys((".png", ".jpg", ".jpeg", ".webp", ".gif"), "image"),
    **dict.fromkeys((".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3"), "audio"),
}
#: The column that has the file's path below the folder.
PATH_COLUMN: Final = "path"


class FolderReader:
    """Reads names, in order, also of folders inside; the files themselves are read by the lines."""

    def __init__(self, path: Path) -> None:
        """Find the files.

        Raises:
            BulkFileError: there is no picture and no sound, or there are both.
        """
        self._path = path
        files = sorted(
            each.relative_to(path)
            for each in path.rglob("*")
            if each.is_file() and not each.name.startswith(".")
        )
        self._files = [each for each in files if each.suffix.lower() in SUFFIXES]
        kinds = {SUFFIXES[each.suffix.lower()] for each in self._files}
        if len(kinds) != 1:
            what = "no picture and no sound" if not kinds else "pictures and sounds"
            raise BulkFileError(f"the folder {path} has {what}: give a folder of one of them")
        self.kind = kinds.pop()
        num_others = len(files) - len(self._files)
        self.notes: tuple[str, ...] = ()
        if num_others:
            self.notes = (f"{path} has {pluralize(num_others, 'other file')}, left out",)

    def columns(self) -> list[str]:
        """Return the name of the only column."""
        return [PATH_COLUMN]

    def count(self) -> int:
        """Return the number of files."""
        return len(self._files)

    def records(self) -> Iterator[Record]:
        """Yield a record for each file, whose name is its `custom_id`."""
        for number, each in enumerate(self._files, start=1):
            name = each.as_posix()
            yield Record(number, number, {"custom_id": name, PATH_COLUMN: name})

    def digest(self) -> str:
        """Return the SHA-256 of all names and contents, hex.

        Raises:
            BulkFileError: a file cannot be read.
        """
        digest = hashlib.sha256()
        for each in self._files:
            try:
                with (self._path / each).open("rb") as file:
                    content = hashlib.file_digest(file, "sha256")
            except OSError as error:
                raise BulkFileError(f"{each} cannot be read: {error.strerror}") from error
            digest.update(f"{each.as_posix()}\0{content.hexdigest()}\n".encode())
        return digest.hexdigest()
