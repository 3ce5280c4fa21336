"""Puts a version into the workers' folder: under its digest, whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from batchmill.engine.errors import AdapterError

from .digest import is_digest

#: Returns the digest of what a folder contains.
DigestOf = Callable[[Path], str]


def store_version(
    folder: Path, digest: str, write: Callable[[Path], None], digest_of: DigestOf
) -> Path:
    """Write a version into the folder of all versions; return where it is.

    Nothing is written if it is there already. Files there that were changed are replaced.

    Args:
        folder: Has every version under its digest.
        digest: Of the version.
        write: Writes its files into an empty folder.
        digest_of: Finds out its digest.

    Raises:
        AdapterError: the folder cannot be written, or the files changed meanwhile.
    """
    target = folder / digest
    try:
        if _has_content(target, digest, digest_of) and _renew(target):
            return target
        folder.mkdir(parents=True, exist_ok=True)
        room = Path(tempfile.mkdtemp(prefix=".adding-", dir=folder))
        draft = room / "new"
        try:
            draft.mkdir()
            write(draft)
            draft.chmod(0o755)
            if digest_of(draft) != digest:
                raise AdapterError("has files that changed while they were copied: add it again")
            if target.is_dir() and not _has_content(target, digest, digest_of):
                target.rename(room / "replaced")
            _put(draft, target, digest, digest_of)
        finally:
            shutil.rmtree(room, ignore_errors=True)
    except OSError as error:
        raise AdapterError(f"{folder} cannot be written ({error.strerror or error})") from error
    return target


def _has_content(target: Path, digest: str, digest_of: DigestOf) -> bool:
    """Return whether a folder has the version with a digest."""
    try:
        return target.is_dir() and digest_of(target) == digest
    except AdapterError:
        return False


def _renew(target: Path) -> bool:
    """Make a version as new as one that is written now; return False if it was just deleted."""
    try:
        os.utime(target)
    except FileNotFoundError:
        return False
    return True


def _put(draft: Path, target: Path, digest: str, digest_of: DigestOf) -> None:
    """Move a new folder to its place; leave what is there if another command was faster."""
    try:
        draft.rename(target)
    except OSError:
        if not _has_content(target, digest, digest_of):
            raise


def list_versions(folder: Path) -> dict[str, Path]:
    """Return the versions in the folder of all versions, by digest.

    Raises:
        AdapterError: the folder cannot be read.
    """
    try:
        return {each.name: each for each in sorted(folder.iterdir()) if is_digest(each.name)}
    except OSError as error:
        raise AdapterError(f"{folder} cannot be read ({error.strerror or error})") from error


def delete_version(folder: Path, digest: str, *, if_older_than_s: float) -> bool:
    """Delete a version; a worker sees it whole or not at all, and keeps what it has read.

    Args:
        folder: Has every version under its digest.
        digest: Of the version.
        if_older_than_s: Unix time. A version that was stored again since then stays: a command has
            perhaps found it there a moment ago, and is about to register its name.

    Returns:
        Whether it was deleted.

    Raises:
        AdapterError: the folder cannot be written.
    """
    target = folder / digest
    try:
        if target.stat().st_mtime >= if_older_than_s:
            return False  # it is not moved even for a moment, in which a worker would not find it
        room = Path(tempfile.mkdtemp(prefix=".deleting-", dir=folder))
        try:
            old = target.rename(room / "old")  # nobody renews it from here on
            is_old = old.stat().st_mtime < if_older_than_s
            if not (is_old or target.exists()):
                old.rename(target)
        finally:
            shutil.rmtree(room)
    except OSError as error:
        raise AdapterError(f"{folder} cannot be written ({error.strerror or error})") from error
    return is_old
