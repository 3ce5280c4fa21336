"""Structures that an output may be asked to follow, each with an independent check of a text."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from jsonschema import Draft202012Validator


class Case(NamedTuple):
    """A structure, and the check that a text follows it."""

    structured_outputs: dict[str, Any]
    follows: Callable[[str], bool]


SCHEMAS: dict[str, dict[str, Any]] = {
    "flat object": {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer"}},
        "required": ["name", "age"],
        "additionalProperties": False,
    },
    "optional properties": {
        "type": "object",
        "properties": {key: {"type": "boolean"} for key in "abcde"},
        "additionalProperties": False,
    },
    "bounded integer": {"type": "integer", "minimum": -3, "maximum": 250},
    "exclusive bounds": {"type": "integer", "exclusiveMinimum": 10, "exclusiveMaximum": 13},
    "bounded number": {"type": "number", "minimum": 0, "maximum": 1},
    "multiple": {"type": "integer", "multipleOf": 7, "minimum": 0, "maximum": 700},
    "boolean": {"type": "boolean"},
    "null": {"type": "null"},
    "several types": {"type": ["boolean", "null"]},
    "enum of texts": {"enum": ["red", "green", 'blue "ish"', "näher", "二"]},
    "enum of anything": {"enum": [1, 2.5, "x", None, True, {"a": [1]}]},
    "large enum": {"enum": [f"category-{index}" for index in range(300)]},
    "const": {"const": {"kind": "answer", "n": 3}},
    "short text": {"type": "string", "minLength": 3, "maxLength": 8},
    "text of a pattern": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3,5}$"},
    "unanchored pattern": {"type": "string", "pattern": "ab", "maxLength": 20},
    "date": {"type": "string", "format": "date"},
    "date and time": {"type": "string", "format": "date-time"},
    "uuid": {"type": "string", "format": "uuid"},
    "email": {"type": "string", "format": "email", "maxLength": 30},
    "ipv4": {"type": "string", "format": "ipv4"},
    "list of integers": {
        "type": "array",
        "items": {"type": "integer", "minimum": 0, "maximum": 99},
        "minItems": 2,
        "maxItems": 5,
    },
    "tuple": {
        "type": "array",
        "prefixItems": [{"type": "boolean"}, {"enum": ["x", "y"]}],
        "items": False,
        "minItems": 2,
    },
    "list of objects": {
        "type": "array",
        "maxItems": 3,
        "items": {
            "type": "object",
            "properties": {"id": {"type": "integer", "maximum": 9, "minimum": 0}},
            "required": ["id"],
            "additionalProperties": False,
        },
    },
    "any of": {"anyOf": [{"type": "boolean"}, {"type": "string", "maxLength": 4}]},
    "one of": {"oneOf": [{"type": "boolean"}, {"type": "integer", "minimum": 0, "maximum": 9}]},
    "all of": {
        "allOf": [
            {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]},
            {"type": "object", "properties": {"b": {"type": "null"}}, "required": ["b"]},
        ],
    },
    "reference": {
        "$defs": {
            "point": {"type": "array", "items": {"$ref": "#/$defs/c"}, "maxItems": 2},
            "c": {"type": "integer", "minimum": 0, "maximum": 9},
        },
        "type": "object",
        "properties": {"from": {"$ref": "#/$defs/point"}, "to": {"$ref": "#/$defs/point"}},
        "required": ["from", "to"],
        "additionalProperties": False,
    },
    "recursive": {
        "$defs": {
            "node": {
                "type": "object",
                "properties": {
                    "value": {"type": "boolean"},
                    "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]},
                },
                "required": ["value", "next"],
                "additionalProperties": False,
            }
        },
        "$ref": "#/$defs/node",
    },
    "further properties of a type": {
        "type": "object",
        "properties": {"known": {"type": "boolean"}},
        "additionalProperties": {"type": "integer", "minimum": 0, "maximum": 9},
    },
    "deep": {
        "type": "object",
        "properties": {
            "a": {
                "type": "object",
                "properties": {"b": {"type": "array", "items": {"enum": [1, 2]}, "maxItems": 4}},
                "required": ["b"],
                "additionalProperties": False,
            }
        },
        "required": ["a"],
        "additionalProperties": False,
    },
    "anything": {},
}
REGEXES = (
    r"[a-f]{4,30}",
    r"(\+49|0)[1-9][0-9]{4,9}",
    r"yes|no|maybe( not)?",
    r"([A-Z][a-z]{1,6} ){1,3}[A-Z][a-z]{1,6}\.",
    r"[0-9]{4}-(0[1-9]|1[0-2])-(0[1-9]|[12][0-9]|3[01])",
    r"(äö|ü){2,4}…?",
    r"\d{2,4}(,\d{3}){0,2}",
    r"#[0-9a-fA-F]{6}",
    r"^[a-c]{2,5}$",
    r"(?i)yes|no",
    r"[a-z]+/[a-z]{1,3}\.(gif|png)",
    r"\w{3,6}\s\S{2,4}",
    r".{1,12}",
    r"<b>[^<>]{1,20}</b>",
)
CHOICES = (["yes", "no"], ["a", "ab", "abc"], ['"quoted"', "line\nbreak", "日本"])


def _is_arithmetic(text: str) -> bool:
    return re.fullmatch(r"[0-9+*()]+", text) is not None and isinstance(eval(text), int)


def _is_balanced(text: str) -> bool:
    while "()" in text:
        text = text.replace("()", "")
    return text == ""


GRAMMARS: dict[str, Callable[[str], bool]] = {
    'start: expr\nexpr: term ("+" term)*\nterm: atom ("*" atom)*\n'
    'atom: NUMBER | "(" expr ")"\nNUMBER: /[1-9][0-9]{0,2}/\n': _is_arithmetic,
    'start: pair+\npair: "(" pair* ")"\n': _is_balanced,
    'start: "SELECT " COLUMN ("," COLUMN)* " FROM " TABLE\nCOLUMN: /[a-z]{1,6}/\n'
    'TABLE: "users" | "orders"\n': lambda text: bool(
        re.fullmatch(r"SELECT [a-z]{1,6}(,[a-z]{1,6})* FROM (users|orders)", text)
    ),
}


def _matches(regex: str, text: str) -> bool:
    # \d, \w and \s are ASCII in a structure; letters of either case are those of Unicode.
    flags = 0 if "(?i)" in regex else re.ASCII
    return re.fullmatch(regex, text, flags) is not None


def _schema_case(schema: dict[str, Any], **options: Any) -> Case:
    validator = Draft202012Validator(schema)

    def follows(text: str) -> bool:
        return bool(validator.is_valid(json.loads(text)))

    return Case({"json": schema, **options}, follows)


CASES: dict[str, Case] = {
    **{name: _schema_case(schema) for name, schema in SCHEMAS.items()},
    "compact object": _schema_case(SCHEMAS["flat object"], disable_any_whitespace=True),
    "json_object": Case({"json_object": True}, lambda text: isinstance(json.loads(text), dict)),
    **{f"regex {regex}": Case({"regex": regex}, partial(_matches, regex)) for regex in REGEXES},
    **{
        f"choice {index}": Case({"choice": choice}, frozenset(choice).__contains__)
        for index, choice in enumerate(CHOICES)
    },
    **{
        f"grammar {index}": Case({"grammar": grammar}, follows)
        for index, (grammar, follows) in enumerate(GRAMMARS.items())
    },
}
