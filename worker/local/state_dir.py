"""The state folder of `batchmill up`: broker data, logs and the webhook secret."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

from pydantic import SecretStr

from batchmill.producer.webhook.signature import new_secret
from batchmill.worker.service_errors import NoStateFolder, NotPrivate

_WRITABLE = "a folder that this user can write"

_SECRET_FILE = "webhook_secret"


def default_state_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """Return BATCHMILL_STATE_DIR, else the user's state folder by the XDG rules."""
    if explicit := environ.get("BATCHMILL_STATE_DIR"):
        return Path(explicit)
    if xdg := environ.get("XDG_STATE_HOME"):
        return Path(xdg) / "batchmill"
    try:
        return Path.home() / ".local" / "state" / "batchmill"
    except RuntimeError as error:  # neither HOME nor an entry of this user
        raise NoStateFolder(f"{error} Set BATCHMILL_STATE_DIR to {_WRITABLE}.") from None


def stored_secret_file(environ: Mapping[str, str] = os.environ) -> Path | None:
    """Return the file in which `batchmill up` keeps this user's webhook secret, if it has one."""
    path = default_state_dir(environ) / _SECRET_FILE
    return path if path.is_file() else None


def find_stored_secret(environ: Mapping[str, str] = os.environ) -> SecretStr | None:
    """Return the webhook secret that `batchmill up` keeps for this user; None if there is none."""
    path = stored_secret_file(environ)
    return None if path is None else SecretStr(path.read_text().strip())


def stored_webhook_secret(state_dir: Path) -> tuple[str, Path]:
    """Return the secret kept in the state folder, and its file. The first call makes it.

    Args:
        state_dir: the folder, which must exist.
    """
    path = state_dir / _SECRET_FILE
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(new_secret() + "\n")
    except FileExistsError:
        pass
    return path.read_text().strip(), path


def make_private_directory(directory: Path, variable: str = "BATCHMILL_STATE_DIR") -> None:
    """Create a folder with mode 0700, or check that an existing one is private and can be written.

    Args:
        directory: the folder.
        variable: the setting that names another folder, for the message.

    Raises:
        NotPrivate: it belongs to another user, or others can read it.
        NoStateFolder: it cannot be created or written.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise _not_writable(directory, error, variable) from None
    status = directory.stat()
    if status.st_uid != os.getuid():
        raise NotPrivate(
            f"{directory} belongs to user id {status.st_uid}, not to {os.getuid()}; "
            "choose another folder"
        )
    if status.st_mode & 0o077:
        raise NotPrivate(
            f"{directory} has mode {status.st_mode & 0o777:o}, so others could read prompts and "
            f"outputs in it; make it private: chmod 700 {directory}"
        )
    try:
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise _not_writable(directory, error, variable) from None


def _not_writable(directory: Path, error: OSError, variable: str) -> NoStateFolder:
    why = f"{error.filename or directory}: {error.strerror}"
    return NoStateFolder(f"{directory} cannot be written ({why}); set {variable} to {_WRITABLE}")
