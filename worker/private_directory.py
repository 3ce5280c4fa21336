"""Folders that only this user can read."""

from __future__ import annotations

import os
from pathlib import Path

from .service_errors import NotPrivate


def make_private_directory(directory: Path) -> None:
    """Create a folder with mode 0700, or check that an existing one is as private.

    Raises:
        NotPrivate: it belongs to somebody else, or others may read it.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = directory.stat()
    if status.st_uid != os.getuid():
        raise NotPrivate(
            f"{directory} belongs to user id {status.st_uid}, not to {os.getuid()}; "
            "choose another directory"
        )
    if status.st_mode & 0o077:
        raise NotPrivate(
            f"{directory} has mode {status.st_mode & 0o777:o}, others could read prompts and "
            f"answers in it; make it private: chmod 700 {directory}"
        )
