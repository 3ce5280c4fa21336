"""Loads the Lua scripts and binds them to a Redis client."""

from __future__ import annotations

from functools import cache
from pathlib import Path

#: Every script, by the name of its file.
SCRIPT_NAMES = (
    "batch_cancel",
    "batch_create",
    "batch_seal",
    "cancel",
    "checkpoint",
    "claim",
    "complete",
    "dead_letter_add",
    "outbox_claim",
    "outbox_redeliver",
    "outbox_set_body",
    "outbox_settle",
    "release",
    "renew",
    "submit",
    "sweep",
)

_FOLDER = Path(__file__).parent


@cache
def script_source(name: str) -> str:
    """Return a script's full text: the shared prelude, then its own file.

    Raises:
        KeyError: there is no such script.
    """
    if name not in SCRIPT_NAMES:
        raise KeyError(f"no script is called {name!r}; there are {', '.join(SCRIPT_NAMES)}")
    prelude = (_FOLDER / "prelude.lua").read_text(encoding="utf-8")
    return prelude + "\n" + (_FOLDER / f"{name}.lua").read_text(encoding="utf-8")
