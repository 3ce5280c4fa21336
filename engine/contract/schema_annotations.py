"""Removal of what a JSON schema says without asking for anything.

JSON Schema calls such keywords annotations: an instance is valid whatever they are. llguidance
refuses some of them, and so would refuse schemas that it can enforce.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

#: Formats that llguidance enforces. Every other one, such as `password` or `color`, is an
#: annotation, as `format` is by default (JSON Schema 2020-12, section 7.2.1).
_ENFORCED_FORMATS: Final = frozenset(
    {
        *("date", "date-time", "duration", "email", "hostname"),
        *("ipv4", "ipv6", "time", "uri", "uuid"),
    }
)
#: Keywords whose value is data and no schema.
_DATA: Final = frozenset({"const", "default", "enum", "example", "examples"})
#: Keywords whose value maps names to schemas.
_MAPS: Final = frozenset(
    {"$defs", "definitions", "dependentSchemas", "patternProperties", "properties"}
)
#: Values that every instance fulfils.
_FULFILLED: Final[Mapping[str, tuple[Any, ...]]] = {
    "dependencies": ({},),
    "dependentRequired": ({},),
    "dependentSchemas": ({},),
    "patternProperties": ({},),
    "propertyNames": ({}, True),
    "unevaluatedItems": ({}, True),
    "unevaluatedProperties": ({}, True),
    "uniqueItems": (False,),
}
#: Keywords that only mean something beside another one.
_DEPENDENT: Final[Mapping[str, tuple[str, ...]]] = {
    "else": ("if",),
    "if": ("else", "then"),
    "maxContains": ("contains",),
    "minContains": ("contains",),
    "then": ("if",),
}
#: Names that only `$dynamicRef` and `$recursiveRef` refer to, which are refused.
_NAMES: Final = frozenset({"$dynamicAnchor", "$recursiveAnchor"})


def without_annotations(schema: Any) -> Any:
    """Return a schema with the same valid instances, and without keywords that ask for nothing.

    Args:
        schema: A JSON value.

    Raises:
        RecursionError: it is nested too deep.
    """
    if isinstance(schema, list | tuple):
        return [without_annotations(each) for each in schema]
    if not isinstance(schema, Mapping):
        return schema
    return {key: _value(key, value) for key, value in schema.items() if _asks(schema, key, value)}


def _value(key: str, value: Any) -> Any:
    if key in _DATA:
        return value
    if key in _MAPS and isinstance(value, Mapping):
        return {name: without_annotations(each) for name, each in value.items()}
    return without_annotations(value)


def _asks(schema: Mapping[str, Any], key: str, value: Any) -> bool:
    """Return whether a keyword may exclude an instance, or name a schema."""
    if key in _NAMES:
        return False
    if key == "format":
        return not isinstance(value, str) or value in _ENFORCED_FORMATS
    if key in _DEPENDENT and not any(other in schema for other in _DEPENDENT[key]):
        return False
    return not any(_is_same(value, each) for each in _FULFILLED.get(key, ()))


def _is_same(value: Any, other: Any) -> bool:
    return type(value) is type(other) and value == other
