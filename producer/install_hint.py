"""The command that adds an extra to this install, for messages about a package that is missing."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

_NAME = "batchmill"


def install_command(extra: str) -> str:
    """Return a command that installs an extra from where this install came from.

    Args:
        extra: name of the extra, such as `worker`.
    """
    return f"pip install {_requirement(extra)}"


def _requirement(extra: str) -> str:
    origin = _origin()
    if origin is None:
        return f"'{_NAME}[{extra}]'"
    url = str(origin.get("url", ""))
    path = Path(unquote(urlsplit(url).path))
    if url.startswith("file://") and path.is_dir():
        is_editable = bool(origin.get("dir_info", {}).get("editable"))
        return f"{'-e ' if is_editable else ''}'{path}[{extra}]'"
    if url.startswith("file://") and not path.is_file():
        return f"'.[{extra}]' in a checkout of {_NAME}"  # the folder or wheel is gone
    vcs = origin.get("vcs_info", {})
    if vcs:
        url = f"{vcs.get('vcs')}+{url}@{vcs.get('commit_id')}"
    return f"'{_NAME}[{extra}] @ {url}'"


def _origin() -> dict[str, Any] | None:
    """Return what pip recorded of an install from a folder, file or repository (PEP 610)."""
    try:
        text = metadata.distribution(_NAME).read_text("direct_url.json")
        found = None if text is None else json.loads(text)
    except (metadata.PackageNotFoundError, ValueError):
        return None
    return found if isinstance(found, dict) else None
