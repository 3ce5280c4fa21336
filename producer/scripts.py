"""Loads the Lua scripts and binds them to a Redis client."""

from __future__ import annotations

from functools import cache
from pathlib import Path

#: Every script, by the name of its file.
SCRIPT_NAMES = (
    "announce_due",
    "cancel",
    "cancel_where",
    "checkpoint",
    "claim",
    "complete",
    "dead_letter_add",
    "forget",
    "forget_where",
    "list",
    "outbox_claim",
    "outbox_redeliver",
    "outbox_set_body",
    "outbox_settle",
    "position",
    "release",
    "renew",
    "retry",
    "submit",
    "sweep",
)

#: What stands in front of every script.
_SHARED = ("index", "prelude")
#: What stands in front of some, after that.
_LIBRARIES = {
    "cancel_where": ("query",),
    "forget": ("forgetting",),
    "forget_where": ("forgetting", "query"),
    "list": ("query",),
    "retry": ("limits",),
    "submit": ("limits",),
}
_FOLDER = Path(__file__).parent


@cache
def script_source(name: str) -> str:
    """Return a script's full text: what all share, then its own file.

    Raises:
        KeyError: there is no such script.
    """
    if name not in SCRIPT_NAMES:
        raise KeyError(f"no script is called {name!r}; there are {', '.join(SCRIPT_NAMES)}")
    parts = (*_SHARED, *_LIBRARIES.get(name, ()), name)
    return "\n".join((_FOLDER / f"{part}.lua").read_text(encoding="utf-8") for part in parts)
