"""Prompts from text that people wrote: the docstrings of Python's standard library."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from typing import NamedTuple

MODULES = (
    *("argparse", "asyncio", "base64", "bisect", "calendar", "codecs", "collections", "contextlib"),
    *("copy", "csv", "datetime", "decimal", "difflib", "email.message", "enum", "fractions"),
    *("functools", "glob", "hashlib", "heapq", "html", "http.client", "inspect", "io", "ipaddress"),
    *("itertools", "json", "locale", "logging", "math", "mimetypes", "operator", "os", "pathlib"),
    *("pickle", "platform", "pprint", "queue", "random", "re", "secrets", "shelve", "shutil"),
    *("smtplib", "socket", "sqlite3", "ssl", "statistics", "string", "struct", "subprocess"),
    *("tarfile", "tempfile", "textwrap", "threading", "time", "tokenize", "traceback", "types"),
    *("unicodedata", "unittest", "urllib.parse", "urllib.request", "uuid", "weakref", "zipfile"),
)
_MIN_CHARS, _MAX_CHARS = 80, 600


class Entry(NamedTuple):
    """A function, class or method with its docstring."""

    name: str
    text: str


def entries() -> Iterator[Entry]:
    """Yield the functions, classes and methods of `MODULES` that have different docstrings."""
    seen: set[str] = set()
    for module_name in MODULES:
        module = importlib.import_module(module_name)
        for name, value in sorted(vars(module).items()):
            members = [(name, value)]
            if inspect.isclass(value):
                members += [(f"{name}.{key}", item) for key, item in sorted(vars(value).items())]
            for path, member in members:
                text = _text_of(member)
                if path[0] != "_" and "._" not in path and text and text not in seen:
                    seen.add(text)
                    yield Entry(f"{module_name}.{path}", text)


def _text_of(member: object) -> str | None:
    """Return an object's docstring on one line, or None if it is missing or too short."""
    if not (callable(member) or isinstance(member, property | classmethod | staticmethod)):
        return None
    text = re.sub(r"\s+", " ", str(getattr(member, "__doc__", None) or "")).strip()
    return text[:_MAX_CHARS] if len(text) >= _MIN_CHARS else None
