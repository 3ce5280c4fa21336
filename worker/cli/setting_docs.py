"""Descriptions of settings, read from the `#:` comments above the fields of their classes."""

from __future__ import annotations

import inspect
import re
from typing import Any

from pydantic import BaseModel

_FIELD = re.compile(r"    (\w+): ")
_COMMENT = re.compile(r"    #: ?(.*)")


def setting_docs(settings: type[BaseModel]) -> dict[str, str]:
    """Return the comment of each field of a settings class and its base classes, by name."""
    docs: dict[str, str] = {}
    for owner in reversed(settings.__mro__):
        if issubclass(owner, BaseModel) and owner.__module__.startswith("batchmill."):
            docs |= field_comments(owner.__dict__.get("described_by", owner))
    return {name: comment for name, comment in docs.items() if name in settings.model_fields}


def field_comments(owner: type) -> dict[str, str]:
    """Return field name to the `#:` comment above it, for the fields that a class declares."""
    docs: dict[str, str] = {}
    comment: list[str] = []
    for line in inspect.getsource(owner).splitlines():
        if match := _COMMENT.fullmatch(line):
            comment.append(match[1])
            continue
        if (match := _FIELD.match(line)) and match[1] in owner.__annotations__:
            docs[match[1]] = " ".join(comment)
        comment = []
    return docs


def format_items(items: tuple[Any, ...]) -> str:
    """Return a list as a user types it into the environment."""
    return ",".join(f"{item:g}" if isinstance(item, float) else str(item) for item in items)
