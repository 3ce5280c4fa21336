"""Extension of the API reference: the `#:` comments above fields become their descriptions."""

from __future__ import annotations

import ast
from typing import Any

from griffe import Attribute, Docstring, Extension, ObjectNode

_MARK = "#:"


class FieldComments(Extension):
    """Reads the comments that describe fields of dataclasses and settings, and constants."""

    def on_attribute_instance(
        self, *, node: ast.AST | ObjectNode, attr: Attribute, **_: Any
    ) -> None:
        """Take the comment right above an attribute as its docstring."""
        if attr.docstring is not None or attr.lineno is None:
            return
        lines = attr.lines_collection[attr.filepath]
        comment: list[str] = []
        for line in reversed(lines[: attr.lineno - 1]):
            if not line.strip().startswith(_MARK):
                break
            comment.insert(0, line.strip().removeprefix(_MARK).strip())
        if comment:
            attr.docstring = Docstring("\n".join(comment), lineno=attr.lineno, parent=attr)
