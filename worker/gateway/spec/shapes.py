"""Short forms of JSON Schemas."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TEXT: Mapping[str, Any] = {"type": "string"}
FLAG: Mapping[str, Any] = {"type": ["boolean", "null"]}
NULL: Mapping[str, Any] = {"type": "null"}


def choice(*values: Any) -> dict[str, Any]:
    """Return the schema of one of some values, or null."""
    return {"enum": [*values, None]}


def either(*schemas: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of what fits one of several."""
    return {"anyOf": list(schemas)}


def items(schema: Mapping[str, Any], *, least: int = 1, most: int = 4096) -> dict[str, Any]:
    """Return the schema of a list."""
    return {"type": "array", "items": schema, "minItems": least, "maxItems": most}


def record(
    required: Mapping[str, Any], optional: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the schema of an object without other fields."""
    return {
        "type": "object",
        "properties": {**required, **(optional or {})},
        "required": list(required),
        "additionalProperties": False,
    }


def named(kind: str, required: Mapping[str, Any], optional: Mapping[str, Any] | None = None) -> Any:
    """Return the schema of an object whose `type` has one value."""
    return record({"type": {"const": kind}, **required}, optional)
