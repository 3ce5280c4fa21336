"""What each setting means, read from the `#:` comments above its field: told once, shown often."""

from __future__ import annotations

import inspect
import re

from pydantic import BaseModel

_FIELD = re.compile(r"    (\w+): ")
_COMMENT = re.compile(r"    #: ?(.*)")


def setting_docs(settings: type[BaseModel]) -> dict[str, str]:
    """Return field name to its comment, of a settings class and those it derives from."""
    docs: dict[str, str] = {}
    for owner in reversed(settings.__mro__):
        if issubclass(owner, BaseModel) and owner.__module__.startswith("batchmill."):
            docs |= _own_docs(owner)
    return docs


def _own_docs(owner: type[BaseModel]) -> dict[str, str]:
    docs: dict[str, str] = {}
    comment: list[str] = []
    for line in inspect.getsource(owner).splitlines():
        if match := _COMMENT.fullmatch(line):
            comment.append(match[1])
            continue
        if (match := _FIELD.match(line)) and match[1] in owner.model_fields:
            docs[match[1]] = " ".join(comment)
        comment = []
    return docs
