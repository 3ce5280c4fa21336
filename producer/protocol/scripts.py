"""Loads the Lua scripts and binds them to a Redis client."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

#: Every script, by the name of its file.
SCRIPT_NAMES = (
    "announce_due",
    "batch_cancel",
    "batch_create",
    "batch_seal",
    "cancel",
    "cancel_where",
    "checkpoint",
    "claim",
    "complete",
    "dead_letter_add",
    "forget",
    "forget_where",
    "inbox_settle",
    "inbox_take",
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
_SHARED = ("index", "prelude", "turns", "events", "batches", "ends")
#: What stands in front of some, after that.
_LIBRARIES = {
    "cancel_where": ("query",),
    "forget": ("forgetting",),
    "forget_where": ("forgetting", "query"),
    "list": ("query",),
    "retry": ("limits",),
    "submit": ("limits",),
    "sweep": ("burial", "usage"),
}
_FOLDER = Path(__file__).parent / "lua"
_DEFINITION = re.compile(r"^(?:local (?:function )?(\w+)|(\w+) = )", re.MULTILINE)
_COMMENT = re.compile(r"--.*")
_NAME = re.compile(r"[A-Za-z_]\w*")


@cache
def script_source(name: str) -> str:
    """Return a script's full text: what it needs of the shared parts, then its own file.

    Redis runs the whole text at each call, and making functions that are not called is a third of a
    short script's time: so the rest is left out.

    Raises:
        KeyError: there is no such script.
    """
    if name not in SCRIPT_NAMES:
        raise KeyError(f"no script is called {name!r}; there are {', '.join(SCRIPT_NAMES)}")
    shared = "\n".join(_read(part) for part in (*_SHARED, *_LIBRARIES.get(name, ())))
    return _needed(shared, _read(name))


def _read(part: str) -> str:
    kind = "commands" if part in SCRIPT_NAMES else "lib"
    return (_FOLDER / kind / f"{part}.lua").read_text(encoding="utf-8")


def _needed(shared: str, own: str) -> str:
    """Return a script behind the definitions that it names, and those that these name.

    The shared parts hold definitions only. One begins with its name at the start of a line, after
    `local` or `local function` or before an assignment, and ends before the next one.
    """
    starts = [*_DEFINITION.finditer(shared)]
    ends = [start.start() for start in starts[1:]] + [len(shared)]
    texts = [
        (start[1] or start[2], shared[start.start() : end])
        for start, end in zip(starts, ends, strict=True)
    ]
    names, todo = set[str](), _names_in(own)
    while todo:  # a name that is declared early may be defined later: until nothing new is named
        names |= todo
        todo = {other for name, text in texts if name in todo for other in _names_in(text)} - names
    return "".join(text for name, text in texts if name in names) + "\n" + own


def _names_in(text: str) -> set[str]:
    return set(_NAME.findall(_COMMENT.sub("", text)))
