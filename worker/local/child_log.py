"""The log of a child process: what it says about its failure, what is new in it, its rotation."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

#: A log that is longer is moved to `.log.1`.
MAX_LOG_BYTES = 16 * 1024 * 1024
#: Longest part of a log line that is shown.
_MAX_SHOWN_CHARS = 2000
_ERROR = "Error: "


class ChildLog:
    """Reads what a child has written to its log since one moment."""

    def __init__(self, path: Path) -> None:
        """Begin at the end of the log as it is now."""
        self.path = path
        self._offset = path.stat().st_size if path.exists() else 0
        self._start = self._offset

    def new_lines(self) -> list[str]:
        """Return the complete lines that were written since the last call."""
        text, self._offset = self._read_from(self._offset)
        return text.splitlines()

    def failure(self) -> str:
        """Return why the child failed: its last critical line, error of a command, or last line."""
        text, _ = self._read_from(self._start)
        lines = text.splitlines()
        for line in reversed(lines):
            event = read_event(line)
            if event is not None and event.get("level") == "critical":
                return str(event.get("reason") or event.get("event"))[:_MAX_SHOWN_CHARS]
            if line.startswith(_ERROR):
                return line.removeprefix(_ERROR)[:_MAX_SHOWN_CHARS]
        return lines[-1][:_MAX_SHOWN_CHARS] if lines else "it wrote nothing to its log"

    def _read_from(self, offset: int) -> tuple[str, int]:
        """Return the complete lines after an offset, and the offset behind them."""
        try:
            with self.path.open("rb") as file:
                if file.seek(0, os.SEEK_END) < offset:
                    offset = 0  # it was rotated
                file.seek(offset)
                data = file.read()
        except FileNotFoundError:
            return "", 0
        end = data.rfind(b"\n") + 1
        return data[:end].decode(errors="replace"), offset + end


def read_event(line: str) -> dict[str, Any] | None:
    """Return a line of a JSON log; None if it is another text."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) else None


def read_events(lines: list[str]) -> Iterator[dict[str, Any]]:
    """Yield the lines that are events."""
    for line in lines:
        if (event := read_event(line)) is not None:
            yield event


def rotate_long_log(path: Path) -> None:
    """Move the content of a long log to `.log.1`. The child goes on writing to the same file.

    A line that the child writes between the last copied byte and the truncation is lost.
    """
    try:
        if path.stat().st_size <= MAX_LOG_BYTES:
            return
        with path.open("r+b") as log, path.with_suffix(".log.1").open("wb") as old:
            shutil.copyfileobj(log, old)
            log.truncate(0)
    except FileNotFoundError:
        return
