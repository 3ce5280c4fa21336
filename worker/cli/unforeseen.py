"""Errors that no part of the program expected: one line for the user, a traceback in a file."""

from __future__ import annotations

import os
import tempfile
import traceback
from pathlib import Path

#: Set to anything but 0, it makes an unforeseen error show its traceback.
_DEBUG = "BATCHMILL_DEBUG"


def is_debugging() -> bool:
    """Return whether unforeseen errors show their traceback."""
    return os.environ.get("BATCHMILL_DEBUG", "0") not in ("", "0")


def enable_debugging() -> None:
    """Let unforeseen errors of this process and its children show their traceback."""
    os.environ[_DEBUG] = "1"


def unforeseen_message(error: BaseException) -> str:
    """Return one line about an error, after its traceback was written to a file of this user."""
    path = _write_traceback(error)
    text = " ".join(str(error).split())
    name = type(error).__name__
    where = f"its traceback is in {path}" if path else f"{_DEBUG}=1 shows its traceback"
    return f"unforeseen error, {name}{f': {text}' if text else ''}; {where}"


def _write_traceback(error: BaseException) -> Path | None:
    """Write the traceback to a file that only this user can read; None if no folder takes it."""
    from batchmill.worker.local.state_dir import default_state_dir, make_private_directory
    from batchmill.worker.service_errors import ServiceError

    text = "".join(traceback.format_exception(error))
    try:
        make_private_directory(default_state_dir())
        folder = default_state_dir() / "logs"
        make_private_directory(folder)
        return _write(folder / "command-error.log", text)
    except (OSError, ServiceError):  # it cannot be written, or others can read it
        pass
    try:
        descriptor, name = tempfile.mkstemp(prefix="batchmill-error-", suffix=".log")
    except OSError:
        return None
    os.close(descriptor)
    return _write(Path(name), text)


def _write(path: Path, text: str) -> Path:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
    with open(os.open(path, flags, 0o600), "w", encoding="utf-8", errors="replace") as file:
        file.write(text)
    return path
