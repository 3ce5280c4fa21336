"""The state folder of `batchmill up`: broker data, logs and the webhook secret."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from batchmill.producer.webhook.signature import new_secret
from batchmill.worker.service_errors import NotPrivate


def default_state_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """Return BATCHMILL_STATE_DIR, else the user's state folder by the XDG rules."""
    if explicit := environ.get("BATCHMILL_STATE_DIR"):
        return Path(explicit)
    if xdg := environ.get("XDG_STATE_HOME"):
        return Path(xdg) / "batchmill"
    return Path.home() / ".local" / "state" / "batchmill"


def stored_webhook_secret(state_dir: Path) -> tuple[str, Path]:
    """Return the secret kept in the state folder, and its file. The first call makes it.

    Args:
        state_dir: the folder, which must exist.
    """
    path = state_dir / "webhook_secret"
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(new_secret() + "\n")
    except FileExistsError:
        pass
    return path.read_text().strip(), path


def make_private_directory(directory: Path) -> None:
    """Create a folder with mode 0700, or check that an existing one is private.

    Raises:
        NotPrivate: it belongs to another user, or others can read it.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
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
