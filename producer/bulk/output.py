"""`DurableLines`: an output file whose lines survive a crash and are found again after it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Self

from batchmill.producer.errors import BulkFileError

#: Lines, bytes and seconds after which appended lines are written and synced.
GROUP_LINES = 256
GROUP_BYTES = 4 << 20
GROUP_INTERVAL_S = 1.0
#: Every line begins with its id.
_LINE_START = b'{"id":"batch_req_'
_LINE_ID = re.compile(r"batch_req_([0-9a-f]{16})_(\d+)")


def line_number(raw: bytes) -> int:
    """Return the record's number of a line of a bulk run."""
    match = _LINE_ID.match(raw.decode(errors="replace"), len(b'{"id":"'))
    return int(match[2]) if match else 0


def line_id(identity: str, number: int) -> str:
    """Return the id of an output line: the run's identity and the record's number."""
    return f"batch_req_{identity[:16]}_{number}"


class DoneLines:
    """The set of finished records, with one bit per record."""

    def __init__(self, num_records: int) -> None:
        self._num_records = num_records
        self._bits = bytearray(num_records // 8 + 1)
        self.count = 0

    def __contains__(self, number: int) -> bool:
        return bool(self._bits[number >> 3] & 1 << (number & 7))

    def count_up_to(self, number: int) -> int:
        """Return how many of the first records are in the set."""
        if number >= self._num_records:
            return self.count
        return sum(each in self for each in range(1, number + 1))

    def add(self, number: int) -> bool:
        """Add a record; return False if it was there before.

        Raises:
            IndexError: no record has this number.
        """
        if not 1 <= number <= self._num_records:
            raise IndexError(number)
        if number in self:
            return False
        self._bits[number >> 3] |= 1 << (number & 7)
        self.count += 1
        return True


class DurableLines:
    """Owns one file while it is open: no other process appends to it meanwhile.

    Invariant: the file holds whole lines, plus at most one torn line at its end after a crash,
    which the next `recover` removes.
    """

    def __init__(self, path: Path) -> None:
        """Open or create the file, and lock it.

        Raises:
            BulkFileError: it cannot be opened, or another process has it.
        """
        self.path = path
        #: SHA-256 of each table that was made of this file.
        self.table_digests: set[str] = set()
        self._group: list[bytes] = []
        self._num_bytes = 0
        self._synced_at = time.monotonic()
        try:
            if path.exists() and not path.is_file():
                raise BulkFileError(f"{path} must be a file, or - for standard output")
            # The user's umask says who may read it, as for any other program.
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise BulkFileError(f"{path} cannot be opened: {error.strerror}") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._file)
            raise BulkFileError(
                f"{path} is being written by another bulk command; wait for it, or end it"
            ) from None
        _sync_folder(path.parent)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Write what was appended, and release the file."""
        try:
            self.sync()
        finally:
            os.close(self._file)

    def recover(
        self,
        identity: str,
        done: DoneLines,
        on_line: Callable[[dict[str, Any], int], None] | None = None,
    ) -> int:
        """Remove a torn last line, add the finished records to `done`, and return their number.

        Args:
            identity: of the run.
            done: gets the records that have a line here.
            on_line: called with each line and its place in the file.

        Raises:
            BulkFileError: the file holds something else, or results of another input; it is left as
                it is.
        """
        before, end = done.count, 0
        with self.path.open("rb") as file:
            for line, raw in enumerate(_own_lines(file), start=1):
                if raw is not None and not raw.endswith(b"\n") and _is_torn(raw, line, identity):
                    break
                parsed = None if raw is None else self._parsed(raw, line, identity)
                if raw is None or parsed is None:
                    raise BulkFileError(
                        f"{self.path}, line {line}: not an output line of bulk; move the file "
                        "away, or give another"
                    )
                data, number = parsed
                end += len(raw)
                if number == 0:
                    self.table_digests.add(str(data.get("table")))
                    continue
                self._note(done, number, line)
                if on_line is not None:
                    on_line(data, line)
        if os.fstat(self._file).st_size != end:
            os.ftruncate(self._file, end)
            os.fsync(self._file)
        return done.count - before

    def append(self, line: dict[str, Any]) -> None:
        """Append a line; `sync_if_due` and `sync` write it."""
        data = json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
        self._group.append(data)
        self._num_bytes += len(data)
        if len(self._group) >= GROUP_LINES or self._num_bytes >= GROUP_BYTES:
            self.sync()

    def sync_if_due(self) -> None:
        """Write the appended lines if `GROUP_INTERVAL_S` have passed."""
        if time.monotonic() - self._synced_at >= GROUP_INTERVAL_S:
            self.sync()

    def sync(self) -> None:
        """Write the appended lines and sync them to disk.

        Raises:
            BulkFileError: the write fails, for instance because the disk is full.
        """
        self._synced_at = time.monotonic()
        if not self._group:
            return
        data = memoryview(b"".join(self._group))
        # Cleared first: after an error it is unknown how much was written. The next command
        # recovers the file and repeats the rest.
        self._group, self._num_bytes = [], 0
        try:
            while data:
                data = data[os.write(self._file, data) :]
            os.fsync(self._file)
        except OSError as error:
            raise BulkFileError(
                f"{self.path} cannot be written: {error.strerror}; free some space and give the "
                "same command again; it resumes from here"
            ) from error

    def _parsed(self, raw: bytes, line: int, identity: str) -> tuple[dict[str, Any], int] | None:
        """Return a line and its record's number; None if it is not a line of a bulk run."""
        try:
            data = json.loads(raw)
            match = _LINE_ID.fullmatch(data["id"])
        except (ValueError, KeyError, TypeError):
            return None
        if match is None:
            return None
        if match[1] != identity[:16]:
            raise BulkFileError(
                f"{self.path}, line {line}: belongs to another input, or to the same one with "
                "another template or other settings; give another output, or move the file away"
            )
        return data, int(match[2])

    def clear(self) -> None:
        """Remove all lines."""
        os.ftruncate(self._file, 0)
        os.fsync(self._file)

    def note_table(self, identity: str, digest: str) -> None:
        """Keep the digest of the table that is made of this file, as its line 0, durably."""
        self.table_digests.add(digest)
        self.append({"id": line_id(identity, 0), "table": digest})
        self.sync()

    def _note(self, done: DoneLines, number: int, line: int) -> None:
        try:
            if done.add(number):
                return
        except IndexError:
            pass
        raise BulkFileError(
            f"{self.path}, line {line}: belongs to record {number}, which has a line already or is "
            "not in the input; the files were changed by hand: move them away"
        )


def _own_lines(file: IO[bytes]) -> Iterator[bytes | None]:
    """Yield the lines of a file; None, and nothing more, at one that does not begin as ours do.

    So a large file of other content is not read as one line.
    """
    while head := file.readline(len(_LINE_START)):
        if not _LINE_START.startswith(head):
            yield None
            return
        yield head + file.readline()


def _is_torn(raw: bytes, line: int, identity: str) -> bool:
    """Return whether a last line without an end is the beginning of one of ours.

    The first line of a file must have its whole id: `{` alone may be anything.
    """
    start = f"{_LINE_START.decode()}{identity[:16]}_".encode()
    return raw.startswith(start) or (line > 1 and start.startswith(raw))


def _sync_folder(folder: Path) -> None:
    """Sync the folder too, so that the file's name is durable, if the file system supports it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
