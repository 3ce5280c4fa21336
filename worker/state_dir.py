"""Where `batchmill up` keeps what must outlive it: broker data, logs, the webhook secret."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from batchmill.producer.webhook import new_secret


def default_state_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """BATCHMILL_STATE_DIR, else the user's state folder by the XDG rules."""
    if explicit := environ.get("BATCHMILL_STATE_DIR"):
        return Path(explicit)
    if xdg := environ.get("XDG_STATE_HOME"):
        return Path(xdg) / "batchmill"
    return Path.home() / ".local" / "state" / "batchmill"


def stored_webhook_secret(state_dir: Path) -> tuple[str, Path]:
    """Return the secret kept in the state folder, made at the first use, and its file.

    Args:
        state_dir: must exist.
    """
    path = state_dir / "webhook_secret"
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(new_secret() + "\n")
    except FileExistsError:
        pass
    return path.read_text().strip(), path
